// Causal attention over windows packed with documents on a CPU, forward and backward; read and written in fp32 or bf16,
// computed in fp32, but for bf16 on processors with AMX (attention_tiles.h).
//
// Position t of window b sees the positions first[b][t] to t, and nothing else is computed: masked-dense attention,
// the alternative, spends most of its time on pairs that the mask then hides.
//
// Shapes: B windows, H heads, T tokens, D = HEAD_WIDTH values a head (set when compiled).
// query, key, value, their gradients: [B, H, T, D], any strides, the last one 1; output and its gradient: [B, T, H, D].

#include <type_traits>
#include <vector>

#include "threads.h"
#include "vectors.h"

namespace {

constexpr int D = HEAD_WIDTH;
static_assert(D % 16 == 0, "the width of a head is a multiple of 16");

constexpr int PARTS = D / LANES;
constexpr int ROWS = 8;  // positions at a time
constexpr int GROUP = REGISTERS >= 32 && PARTS % 2 == 0 ? 2 : 1;  // parts at a time: ROWS * GROUP sums stay in registers

}  // namespace

#include "heads.h"

namespace {

template <typename Number>
struct View {  // of [B, H, T, D]
  Number* data;
  long batch, head, time;
  Number* row(long b, long h, long t) const { return data + b * batch + h * head + t * time; }
};

struct Scratch {  // of one head, in fp32
  int padded;                         // T up to a multiple of LANES
  std::vector<float> queries, keys, values, outputs, slopes;             // [T, D]
  std::vector<float> query_slopes, key_slopes, value_slopes;             // [T, D]
  std::vector<float> key_columns, value_columns;                         // [D, padded]
  std::vector<float> weights, changes;                                   // [ROWS, padded]
  explicit Scratch(int length)
      : padded((length + LANES - 1) / LANES * LANES),
        queries(D * length), keys(D * length), values(D * length), outputs(D * length), slopes(D * length),
        query_slopes(D * length), key_slopes(D * length), value_slopes(D * length),
        key_columns(D * padded), value_columns(D * padded), weights(ROWS * padded), changes(ROWS * padded) {}
};

}  // namespace

#if defined(__linux__) && defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && \
    HEAD_WIDTH % 32 == 0
#define BY_TILES
#include "attention_tiles.h"
#endif

namespace {

template <typename Number>
void gather(const View<Number>& from, long b, long h, int length, std::vector<float>& to) {
  for (int t = 0; t < length; ++t)
    for (int p = 0; p < D; p += LANES) store(to.data() + t * D + p, load(from.row(b, h, t) + p));
}

template <typename Number>
void scatter(const std::vector<float>& from, const View<Number>& to, long b, long h, int length) {
  for (int t = 0; t < length; ++t)
    for (int p = 0; p < D; p += LANES) store(to.row(b, h, t) + p, load(from.data() + t * D + p));
}

void transpose(const std::vector<float>& rows, int length, int padded, std::vector<float>& columns) {
  for (int t = 0; t < length; ++t)
    for (int d = 0; d < D; ++d) columns[d * padded + t] = rows[t * D + d];
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
inline void weighted_rows(const float* weights, int padded, const float* of, int start, int stop,
                          Vector (*sums)[PARTS]) {
  for (int p = 0; p < PARTS; p += GROUP) {
    Vector sum[ROWS][GROUP] = {};
    for (int j = start; j < stop; ++j) {
      const float* row = of + j * D + p * LANES;
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
inline void spread_rows(const float* weights, int padded, const float* const* rows, float* to, int start, int stop) {
  for (int p = 0; p < PARTS; p += GROUP) {
    Vector kept[ROWS][GROUP];
    for (int r = 0; r < ROWS; ++r)
      for (int g = 0; g < GROUP; ++g) kept[r][g] = load(rows[r] + (p + g) * LANES);
    for (int j = start; j < stop; ++j) {
      float* row = to + j * D + p * LANES;
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

// Queries, keys and values of the head are in `scratch`; leaves its outputs there.
void forward_head(const int* see, int length, float scale, float* logsums, Scratch& scratch) {
  const int padded = scratch.padded;
  transpose(scratch.keys, length, padded, scratch.key_columns);
  float* weights = scratch.weights.data();
  for (int start = 0; start < length; start += ROWS) {
    const Block block(see, start, length);
    const float* rows[ROWS];
    for (int r = 0; r < ROWS; ++r) rows[r] = scratch.queries.data() + block.position[r] * D;
    against_columns(rows, scratch.key_columns.data(), padded, block.left, block.right, weights);
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
    weighted_rows(weights, padded, scratch.values.data(), block.left, block.stop, sums);
    for (int r = 0; r < block.rows; ++r) {
      float* out = scratch.outputs.data() + block.position[r] * D;
      for (int p = 0; p < PARTS; ++p) store(out + p * LANES, sums[r][p] * inverse[r]);
    }
  }
}

// Queries, keys, values, outputs and their slopes are in `scratch`; leaves the slopes of the first three there.
void backward_head(const int* see, const float* logsums, int length, float scale, Scratch& scratch) {
  const int padded = scratch.padded;
  transpose(scratch.keys, length, padded, scratch.key_columns);
  transpose(scratch.values, length, padded, scratch.value_columns);
  std::fill(scratch.key_slopes.begin(), scratch.key_slopes.end(), 0.0f);
  std::fill(scratch.value_slopes.begin(), scratch.value_slopes.end(), 0.0f);
  float* weights = scratch.weights.data();
  float* changes = scratch.changes.data();
  for (int start = 0; start < length; start += ROWS) {
    const Block block(see, start, length);
    const float *rows[ROWS], *down[ROWS];
    for (int r = 0; r < ROWS; ++r) {
      rows[r] = scratch.queries.data() + block.position[r] * D;
      down[r] = scratch.slopes.data() + block.position[r] * D;
    }
    against_columns(rows, scratch.key_columns.data(), padded, block.left, block.right, weights);
    against_columns(down, scratch.value_columns.data(), padded, block.left, block.right, changes);
    for (int r = 0; r < ROWS; ++r) {
      float* line = weights + r * padded;
      float* change = changes + r * padded;
      const float* out = scratch.outputs.data() + block.position[r] * D;
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
    weighted_rows(changes, padded, scratch.keys.data(), block.left, block.stop, sums);
    for (int r = 0; r < block.rows; ++r) {
      float* into = scratch.query_slopes.data() + block.position[r] * D;
      for (int p = 0; p < PARTS; ++p) store(into + p * LANES, sums[r][p]);
    }
    spread_rows(changes, padded, rows, scratch.key_slopes.data(), block.left, block.stop);
    spread_rows(weights, padded, down, scratch.value_slopes.data(), block.left, block.stop);
  }
}

// Every (window, head) is computed by one thread alone.
template <typename Workspace, typename Work>
void over_heads(long batch, long heads, int length, int threads, Parallel parallel, Work work) {
  share_out(batch * heads, threads, parallel, [=] { return Workspace(length); },
            [&](long i, Workspace& scratch) { work(i / heads, i % heads, scratch); });
}

template <typename Number>
void forward(Number* query, Number* key, Number* value, const int* first, const long* strides, long batch, long heads,
             int length, float scale, int threads, Parallel parallel, Number* output, float* logsums) {
  const View<Number> q{query, strides[0], strides[1], strides[2]}, k{key, strides[3], strides[4], strides[5]};
  const View<Number> v{value, strides[6], strides[7], strides[8]};
  const View<Number> out{output, length * heads * D, D, heads * D};
#ifdef BY_TILES
  if constexpr (std::is_same_v<Number, Half>)
    if (tiles_granted())
      return over_heads<TileScratch>(batch, heads, length, threads, parallel, [&](long b, long h, auto& scratch) {
        forward_by_tiles(q, k, v, out, b, h, first + b * length, length, scale, logsums + (b * heads + h) * length,
                         scratch);
      });
#endif
  over_heads<Scratch>(batch, heads, length, threads, parallel, [&](long b, long h, Scratch& scratch) {
    gather(q, b, h, length, scratch.queries);
    gather(k, b, h, length, scratch.keys);
    gather(v, b, h, length, scratch.values);
    forward_head(first + b * length, length, scale, logsums + (b * heads + h) * length, scratch);
    scatter(scratch.outputs, out, b, h, length);
  });
}

// The gradients lie as the output does, their positions `slope_time` values apart.
template <typename Number>
void backward(Number* query, Number* key, Number* value, Number* output, Number* slope, const int* first,
              const float* logsums, const long* strides, long batch, long heads, int length, float scale, int threads,
              Parallel parallel, long slope_time, Number* query_slope, Number* key_slope, Number* value_slope) {
  const View<Number> q{query, strides[0], strides[1], strides[2]}, k{key, strides[3], strides[4], strides[5]};
  const View<Number> v{value, strides[6], strides[7], strides[8]};
  const long by_window = length * heads * D, by_time = heads * D;
  const View<Number> out{output, by_window, D, by_time}, down{slope, by_window, D, by_time};
  const long apart = length * slope_time;
  const View<Number> dq{query_slope, apart, D, slope_time}, dk{key_slope, apart, D, slope_time};
  const View<Number> dv{value_slope, apart, D, slope_time};
#ifdef BY_TILES
  if constexpr (std::is_same_v<Number, Half>)
    if (tiles_granted())
      return over_heads<TileScratch>(batch, heads, length, threads, parallel, [&](long b, long h, auto& scratch) {
        backward_by_tiles(q, k, v, out, down, dq, dk, dv, b, h, first + b * length, length, scale,
                          logsums + (b * heads + h) * length, scratch);
      });
#endif
  over_heads<Scratch>(batch, heads, length, threads, parallel, [&](long b, long h, Scratch& scratch) {
    gather(q, b, h, length, scratch.queries);
    gather(k, b, h, length, scratch.keys);
    gather(v, b, h, length, scratch.values);
    gather(out, b, h, length, scratch.outputs);
    gather(down, b, h, length, scratch.slopes);
    backward_head(first + b * length, logsums + (b * heads + h) * length, length, scale, scratch);
    scatter(scratch.query_slopes, dq, b, h, length);
    scatter(scratch.key_slopes, dk, b, h, length);
    scatter(scratch.value_slopes, dv, b, h, length);
  });
}

}  // namespace

// `half`: tensors are bf16; cos, sin, the weights of norms and their gradients are fp32. strides: of query, key, value in
// turn, each by window, head and time. `parallel` may be null.
extern "C" {

int rows_of_a_part() { return PART; }

void heads_forward(int half, void* qkv, const float* weights, const float* cos, const float* sin, float eps, long count,
                   long heads, long length, int threads, Parallel parallel, void* output) {
  FOR_NUMBERS(turned_forward(P(qkv), weights, Turn{cos, sin}, eps, count, heads, length, threads, parallel, P(output)));
}

void heads_backward(int half, void* qkv, const float* weights, const float* cos, const float* sin, float eps,
                    long count, long heads, long length, int threads, Parallel parallel, void* slopes,
                    float* weight_slopes) {
  FOR_NUMBERS(turned_backward(P(qkv), weights, Turn{cos, sin}, eps, count, heads, length, threads, parallel, P(slopes),
                              weight_slopes));
}

void attention_forward(int half, void* query, void* key, void* value, const int* first, const long* strides, long batch,
                       long heads, int length, float scale, int threads, Parallel parallel, void* output,
                       float* logsums) {
  FOR_NUMBERS(forward(P(query), P(key), P(value), first, strides, batch, heads, length, scale, threads, parallel,
                      P(output), logsums));
}

void attention_backward(int half, void* query, void* key, void* value, void* output, void* slope, const int* first,
                        const float* logsums, const long* strides, long batch, long heads, int length, float scale,
                        int threads, Parallel parallel, long slope_time, void* query_slope, void* key_slope,
                        void* value_slope) {
  FOR_NUMBERS(backward(P(query), P(key), P(value), P(output), P(slope), first, logsums, strides, batch, heads, length,
                       scale, threads, parallel, slope_time, P(query_slope), P(key_slope), P(value_slope)));
}
}
