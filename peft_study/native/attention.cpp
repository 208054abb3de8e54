// Causal attention over windows packed with documents, in fp32 on a CPU, forward and backward.
//
// Position t of window b sees the positions first[b][t] to t, and nothing else is computed: masked-dense attention,
// the alternative, spends most of its time on pairs that the mask then hides.
//
// Shapes: B windows, H heads, T tokens, D = HEAD_WIDTH values a head (set when compiled).
// query, key, value, their gradients: [B, H, T, D], any strides, the last one 1; output and its gradient: [B, T, H, D].

#include <thread>
#include <vector>

#include "vectors.h"

namespace {

constexpr int D = HEAD_WIDTH;
static_assert(D % 16 == 0, "the width of a head is a multiple of 16");

constexpr int PARTS = D / LANES;
constexpr int ROWS = 8;  // positions at a time
constexpr int GROUP = REGISTERS >= 32 && PARTS % 2 == 0 ? 2 : 1;  // parts at a time: ROWS * GROUP sums stay in registers

struct View {  // of [B, H, T, D]
  float* data;
  long batch, head, time;
  float* row(long b, long h, long t) const { return data + b * batch + h * head + t * time; }
};

struct Scratch {
  int padded;                         // T up to a multiple of LANES
  std::vector<float> keys, values;    // [D, padded], transposed
  std::vector<float> weights, slopes;  // [ROWS, padded]
  explicit Scratch(int length)
      : padded((length + LANES - 1) / LANES * LANES),
        keys(D * padded), values(D * padded), weights(ROWS * padded), slopes(ROWS * padded) {}
};

void transpose(const View& from, long b, long h, int length, int padded, float* to) {
  for (int t = 0; t < length; ++t) {
    const float* row = from.row(b, h, t);
    for (int d = 0; d < D; ++d) to[d * padded + t] = row[d];
  }
}

// products[r][j] = rows[r] . columns[:, j] for j in [start, stop), whole vectors at a time
inline void against_columns(const float* const* rows, const float* columns, int padded, int start, int stop,
                            float* products) {
  for (int j = start; j < stop; j += LANES) {
    Vector sum[ROWS] = {};
    for (int d = 0; d < D; ++d) {
      Vector column = load(columns + d * padded + j);
      for (int r = 0; r < ROWS; ++r) sum[r] += column * rows[r][d];
    }
    for (int r = 0; r < ROWS; ++r) store(products + r * padded + j, sum[r]);
  }
}

// sums[r] = sum over j in [start, stop) of weights[r][j] times row j
inline void weighted_rows(const float* weights, int padded, const View& of, long b, long h, int start, int stop,
                          Vector (*sums)[PARTS]) {
  for (int p = 0; p < PARTS; p += GROUP) {
    Vector sum[ROWS][GROUP] = {};
    for (int j = start; j < stop; ++j) {
      const float* row = of.row(b, h, j) + p * LANES;
      for (int g = 0; g < GROUP; ++g) {
        Vector part = load(row + g * LANES);
        for (int r = 0; r < ROWS; ++r) sum[r][g] += part * weights[r * padded + j];
      }
    }
    for (int r = 0; r < ROWS; ++r)
      for (int g = 0; g < GROUP; ++g) sums[r][p + g] = sum[r][g];
  }
}

// row j of `to` += sum over r of weights[r][j] times rows[r], for j in [start, stop)
inline void spread_rows(const float* weights, int padded, const float* const* rows, const View& to, long b, long h,
                        int start, int stop) {
  for (int p = 0; p < PARTS; p += GROUP) {
    Vector kept[ROWS][GROUP];
    for (int r = 0; r < ROWS; ++r)
      for (int g = 0; g < GROUP; ++g) kept[r][g] = load(rows[r] + (p + g) * LANES);
    for (int j = start; j < stop; ++j) {
      float* row = to.row(b, h, j) + p * LANES;
      for (int g = 0; g < GROUP; ++g) {
        Vector sum = load(row + g * LANES);
        for (int r = 0; r < ROWS; ++r) sum += kept[r][g] * weights[r * padded + j];
        store(row + g * LANES, sum);
      }
    }
  }
}

struct Block {  // ROWS positions of a window, the last ones repeated at its end
  int rows, stop, left, right;
  int position[ROWS], first[ROWS];
  Block(const int* see, int start, int length) {
    rows = std::min(ROWS, length - start);
    stop = start + rows;
    for (int r = 0; r < ROWS; ++r) {
      position[r] = start + std::min(r, rows - 1);
      first[r] = see[position[r]];
    }
    left = *std::min_element(first, first + ROWS) / LANES * LANES;
    right = (stop + LANES - 1) / LANES * LANES;
  }
};

void forward_head(const View& query, const View& key, const View& value, const int* see, long b, long h, int length,
                  float scale, const View& output, float* logsums, Scratch& scratch) {
  const int padded = scratch.padded;
  transpose(key, b, h, length, padded, scratch.keys.data());
  float* weights = scratch.weights.data();
  for (int start = 0; start < length; start += ROWS) {
    const Block block(see, start, length);
    const float* rows[ROWS];
    for (int r = 0; r < ROWS; ++r) rows[r] = query.row(b, h, block.position[r]);
    against_columns(rows, scratch.keys.data(), padded, block.left, block.right, weights);
    float inverse[ROWS];
    for (int r = 0; r < ROWS; ++r) {
      float* line = weights + r * padded;
      const int from = block.first[r], to = block.position[r];
      Vector largest = splat(-INFINITY);
      for (int j = block.left; j < block.right; j += LANES) {
        IntVector lanes = lanes_from(j);
        Vector logits = load(line + j) * scale;
        logits = ((lanes >= from) & (lanes <= to)) ? logits : splat(-INFINITY);
        store(line + j, logits);
        largest = largest > logits ? largest : logits;
      }
      const float top = largest_of(largest);
      Vector total = {};
      for (int j = block.left; j < block.right; j += LANES) {
        Vector logits = load(line + j);
        Vector weight = exponential(logits - top);
        weight = logits == splat(-INFINITY) ? Vector{} : weight;
        store(line + j, weight);
        total += weight;
      }
      const float sum = total_of(total);
      inverse[r] = 1 / sum;
      logsums[block.position[r]] = top + std::log(sum);
    }
    Vector sums[ROWS][PARTS];
    weighted_rows(weights, padded, value, b, h, block.left, block.stop, sums);
    for (int r = 0; r < block.rows; ++r)
      for (int p = 0; p < PARTS; ++p) store(output.row(b, h, block.position[r]) + p * LANES, sums[r][p] * inverse[r]);
  }
}

void backward_head(const View& query, const View& key, const View& value, const View& output, const View& slope,
                   const int* see, const float* logsums, long b, long h, int length, float scale,
                   const View& query_slope, const View& key_slope, const View& value_slope, Scratch& scratch) {
  const int padded = scratch.padded;
  transpose(key, b, h, length, padded, scratch.keys.data());
  transpose(value, b, h, length, padded, scratch.values.data());
  for (int t = 0; t < length; ++t) {
    std::memset(key_slope.row(b, h, t), 0, D * sizeof(float));
    std::memset(value_slope.row(b, h, t), 0, D * sizeof(float));
  }
  float* weights = scratch.weights.data();
  float* slopes = scratch.slopes.data();
  for (int start = 0; start < length; start += ROWS) {
    const Block block(see, start, length);
    const float *rows[ROWS], *down[ROWS];
    for (int r = 0; r < ROWS; ++r) {
      rows[r] = query.row(b, h, block.position[r]);
      down[r] = slope.row(b, h, block.position[r]);
    }
    against_columns(rows, scratch.keys.data(), padded, block.left, block.right, weights);
    against_columns(down, scratch.values.data(), padded, block.left, block.right, slopes);
    for (int r = 0; r < ROWS; ++r) {
      float* line = weights + r * padded;
      float* change = slopes + r * padded;
      const float* out = output.row(b, h, block.position[r]);
      Vector products = {};
      for (int p = 0; p < PARTS; ++p) products += load(out + p * LANES) * load(down[r] + p * LANES);
      const float mean = total_of(products);
      // A repeated row at the end of the window counts once.
      const int from = r < block.rows ? block.first[r] : length, to = block.position[r];
      const float logsum = logsums[block.position[r]];
      for (int j = block.left; j < block.right; j += LANES) {
        IntVector lanes = lanes_from(j);
        Vector weight = exponential(load(line + j) * scale - logsum);
        weight = ((lanes >= from) & (lanes <= to)) ? weight : Vector{};
        store(line + j, weight);
        store(change + j, weight * (load(change + j) - mean) * scale);
      }
    }
    Vector sums[ROWS][PARTS];
    weighted_rows(slopes, padded, key, b, h, block.left, block.stop, sums);
    for (int r = 0; r < block.rows; ++r)
      for (int p = 0; p < PARTS; ++p) store(query_slope.row(b, h, block.position[r]) + p * LANES, sums[r][p]);
    spread_rows(slopes, padded, rows, key_slope, b, h, block.left, block.stop);
    spread_rows(weights, padded, down, value_slope, b, h, block.left, block.stop);
  }
}

// Every (window, head) is computed by one thread alone, so results do not depend on their number.
template <typename Work>
void over_heads(long batch, long heads, int length, int threads, Work work) {
  const long all = batch * heads;
  auto share = [&](long worker) {
    Scratch scratch(length);
    for (long i = worker; i < all; i += threads) work(i / heads, i % heads, scratch);
  };
  std::vector<std::thread> others;
  for (long worker = 1; worker < threads; ++worker) others.emplace_back(share, worker);
  share(0);
  for (auto& other : others) other.join();
}

}  // namespace

extern "C" {

// strides: of query, key, value in turn, each by window, head and time.
void attention_forward(float* query, float* key, float* value, const int* first, const long* strides, long batch,
                       long heads, int length, float scale, int threads, float* output, float* logsums) {
  const View q{query, strides[0], strides[1], strides[2]}, k{key, strides[3], strides[4], strides[5]};
  const View v{value, strides[6], strides[7], strides[8]};
  const View out{output, length * heads * D, D, heads * D};
  over_heads(batch, heads, length, threads, [&](long b, long h, Scratch& scratch) {
    forward_head(q, k, v, first + b * length, b, h, length, scale, out, logsums + (b * heads + h) * length, scratch);
  });
}

// The gradients lie as the output does.
void attention_backward(float* query, float* key, float* value, float* output, float* slope, const int* first,
                        const float* logsums, const long* strides, long batch, long heads, int length, float scale,
                        int threads, float* query_slope, float* key_slope, float* value_slope) {
  const View q{query, strides[0], strides[1], strides[2]}, k{key, strides[3], strides[4], strides[5]};
  const View v{value, strides[6], strides[7], strides[8]};
  const long by_window = length * heads * D, by_time = heads * D;
  const View out{output, by_window, D, by_time}, down{slope, by_window, D, by_time};
  const View dq{query_slope, by_window, D, by_time}, dk{key_slope, by_window, D, by_time};
  const View dv{value_slope, by_window, D, by_time};
  over_heads(batch, heads, length, threads, [&](long b, long h, Scratch& scratch) {
    backward_head(q, k, v, out, down, first + b * length, logsums + (b * heads + h) * length, b, h, length, scale, dq,
                  dk, dv, scratch);
  });
}
}
