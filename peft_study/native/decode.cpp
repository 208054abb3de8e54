// A Qwen3 in fp32 on a CPU: tokens, a row each, through all layers, to the logits of those that want them.
//
// Only rows of one sequence meet, so each thread takes some sequences through the whole model. The cache is in pages of
// PAGE positions, and a table says which pages hold a sequence: sequences grow, go, fork and go back without a copy.
//
// Shapes: D = HEAD_WIDTH values a head (set when compiled), H heads, width = H * D or another. A page holds for each layer
// keys [H, D, PAGE], so that logits of neighbours are computed together, and values [H, PAGE, D]. A matrix [N, K] is
// packed: panels of PANEL rows, each [K, PANEL], the last one filled with zeros.

#include <thread>
#include <vector>

#include "vectors.h"

namespace {

constexpr int D = HEAD_WIDTH;
static_assert(D % 16 == 0, "the width of a head is a multiple of 16");

constexpr int PARTS = D / LANES;
constexpr int PANEL = 2 * LANES;
constexpr int BLOCKS = 4, STRETCH = BLOCKS * LANES;  // positions whose logits are summed at once
constexpr int PAGE = 16;
static_assert(PAGE % LANES == 0, "a page holds whole vectors");
constexpr int ROWS = REGISTERS >= 32 ? 12 : 6;  // rows at a time: ROWS * 2 sums stay in registers

// out[r, n] (+)= in[r, :] . matrix[n, :] (+ bias[n]) for R rows at most and one panel
template <bool ADD, int R>
void multiply_panel(const float* in, long rows, long inputs, const float* panel, long there, long outputs,
                    const float* bias, float* out) {
  const float* row[R];
  for (int r = 0; r < R; ++r) row[r] = in + std::min<long>(r, rows - 1) * inputs;
  Vector sums[R][2] = {};
  for (long k = 0; k < inputs; ++k) {
    const Vector left = load(panel + k * PANEL), right = load(panel + k * PANEL + LANES);
    for (int r = 0; r < R; ++r) {
      sums[r][0] += left * row[r][k];
      sums[r][1] += right * row[r][k];
    }
  }
  for (int r = 0; r < R && r < rows; ++r) {
    float found[PANEL];
    store(found, sums[r][0]);
    store(found + LANES, sums[r][1]);
    float* to = out + r * outputs;
    for (long i = 0; i < there; ++i) {
      const float value = found[i] + (bias ? bias[i] : 0.0f);
      to[i] = ADD ? to[i] + value : value;
    }
  }
}

// out[r, n] (+)= in[r, :] . matrix[n, :] (+ bias[n])
template <bool ADD>
void multiply(const float* in, long rows, long inputs, const float* packed, long outputs, const float* bias,
              float* out) {
  for (long n = 0; n < outputs; n += PANEL)
    for (long start = 0; start < rows; start += ROWS) {
      const long left = rows - start;
      // The last rows are few when most sequences have ended: they do not pay for ROWS.
      const auto some = left > ROWS / 2   ? multiply_panel<ADD, ROWS>
                        : left > ROWS / 3 ? multiply_panel<ADD, ROWS / 2>
                        : left > ROWS / 6 ? multiply_panel<ADD, ROWS / 3>
                                          : multiply_panel<ADD, ROWS / 6>;
      some(in + start * inputs, left, inputs, packed + n * inputs, std::min<long>(PANEL, outputs - n), outputs,
           bias ? bias + n : nullptr, out + start * outputs + n);
    }
}

void normalise(const float* in, const float* weight, long width, float eps, float* out) {
  Vector squares = {};
  for (long i = 0; i < width; i += LANES) squares += load(in + i) * load(in + i);
  const float scale = 1 / std::sqrt(total_of(squares) / width + eps);
  for (long i = 0; i < width; i += LANES) store(out + i, load(in + i) * scale * load(weight + i));
}

// Turns the first half of a head's values against the second (rotary positions).
void rotate(float* head, const float* cos, const float* sin) {
  for (int i = 0; i < D / 2; ++i) {
    const float first = head[i], second = head[i + D / 2];
    head[i] = first * cos[i] - second * sin[i];
    head[i + D / 2] = second * cos[i + D / 2] + first * sin[i + D / 2];
  }
}

// Where a head of a layer lies in the pages of a sequence.
struct Head {
  const long *pages, *places;  // numbers of the sequence's pages; where each page lies in memory
  long keys, values;           // floats from the start of a page

  const float* keys_at(long position) const { return page(position) + keys + position % PAGE; }
  const float* values_at(long position) const { return page(position) + values + position % PAGE * D; }
  float* page(long position) const { return reinterpret_cast<float*>(places[pages[position / PAGE]]); }
};

// The softmax of query . keys[first .. last] over `scale`, times the values.
void attend(const float* query, const Head& head, long first, long last, float* logits, float* out) {
  const float scale = 1 / std::sqrt(static_cast<float>(D));
  const long left = first / LANES * LANES, right = last + 1;
  Vector largest = splat(-INFINITY);
  for (long s = left; s < right; s += STRETCH) {
    const float *keys[BLOCKS], *values[BLOCKS];
    for (int b = 0; b < BLOCKS; ++b) {
      keys[b] = head.keys_at(std::min(s + b * LANES, last / LANES * LANES));
      values[b] = head.values_at(std::min(s + b * LANES, last / LANES * LANES));
    }
    Vector sums[BLOCKS] = {};
    for (int d = 0; d < D; ++d)
      for (int b = 0; b < BLOCKS; ++b) {
        __builtin_prefetch(values[b] + d * LANES);
        sums[b] += load(keys[b] + d * PAGE) * query[d];
      }
    for (int b = 0; b < BLOCKS; ++b) {
      const IntVector lanes = lanes_from(static_cast<int>(s) + b * LANES);
      const Vector seen = ((lanes >= static_cast<int>(first)) & (lanes <= static_cast<int>(last))) ? sums[b] * scale
                                                                                                  : splat(-INFINITY);
      store(logits + s + b * LANES, seen);
      largest = largest > seen ? largest : seen;
    }
  }
  const float top = largest_of(largest);
  Vector total = {};
  for (long s = left; s < right; s += LANES) {
    const Vector logit = load(logits + s);
    Vector weight = exponential(logit - top);
    weight = logit == splat(-INFINITY) ? Vector{} : weight;
    store(logits + s, weight);
    total += weight;
  }
  Vector even[PARTS] = {}, odd[PARTS] = {};  // two sums: one would wait for itself
  for (long s = first; s < right;) {
    const float* values = head.values_at(s);
    const long end = std::min(right, s / PAGE * PAGE + PAGE);
    for (; s + 1 < end; s += 2, values += 2 * D)
      for (int p = 0; p < PARTS; ++p) {
        even[p] += load(values + p * LANES) * logits[s];
        odd[p] += load(values + D + p * LANES) * logits[s + 1];
      }
    if (s < end) {
      for (int p = 0; p < PARTS; ++p) even[p] += load(values + p * LANES) * logits[s];
      ++s;
    }
  }
  const float inverse = 1 / total_of(total);
  for (int p = 0; p < PARTS; ++p) store(out + p * LANES, (even[p] + odd[p]) * inverse);
}

// gate_up: [2, width]; out = silu(gate) * up
void gated(const float* gate_up, long width, float* out) {
  for (long i = 0; i < width; i += LANES) {
    const Vector gate = load(gate_up + i);
    const Vector small = exponential(gate < Vector{} ? gate : -gate);
    const Vector share = (gate < Vector{} ? small : splat(1.0f)) / (small + 1.0f);
    store(out + i, gate * share * load(gate_up + width + i));
  }
}

struct Layer {
  const float *attention_norm, *qkv, *qkv_bias, *q_norm, *k_norm, *out, *out_bias, *mlp_norm, *gate_up, *down;
};

struct Model {
  const Layer* layers;
  const long* windows;  // tokens that each layer sees, the last one included
  long num_layers, width, heads, mlp, words, columns;
  const long *table, *places;  // [sequences, columns], numbers of pages; where each page lies in memory
  const float *cos, *sin;  // [positions, D]
  const float *norm, *head, *head_bias;
  float eps;
};

struct Rows {  // those of a sequence stand together, in their order
  float* x;                // [rows, width], the embeddings
  const long *sequences, *positions;
  const long* wanted;  // row of the logits, negative for none
};

void through(const Model& model, const Rows& all, long begin, long end, float* logits) {
  const long rows = end - begin, width = model.width, inner = model.heads * D;
  float* x = all.x + begin * width;
  const long *sequences = all.sequences + begin, *positions = all.positions + begin, *wanted = all.wanted + begin;
  std::vector<float> normal(rows * width), qkv(rows * 3 * inner), mixed(rows * inner), gate_up(rows * 2 * model.mlp);
  std::vector<float> active(rows * model.mlp), scores(model.columns * PAGE + STRETCH);
  for (long at = 0; at < model.num_layers; ++at) {
    const Layer& layer = model.layers[at];
    for (long r = 0; r < rows; ++r)
      normalise(x + r * width, layer.attention_norm, width, model.eps, &normal[r * width]);
    multiply<false>(normal.data(), rows, width, layer.qkv, 3 * inner, layer.qkv_bias, qkv.data());
    auto head_of = [&](long r, long h) {
      const long keys = (at * 2 * model.heads + h) * D * PAGE;
      return Head{model.table + sequences[r] * model.columns, model.places, keys, keys + inner * PAGE};
    };
    for (long r = 0; r < rows; ++r) {
      const long here = positions[r];
      const float *cos = model.cos + here * D, *sin = model.sin + here * D;
      for (long h = 0; h < model.heads; ++h) {
        float* query = &qkv[r * 3 * inner + h * D];
        float *key = query + inner, *value = key + inner;
        normalise(query, layer.q_norm, D, model.eps, query);
        normalise(key, layer.k_norm, D, model.eps, key);
        rotate(query, cos, sin);
        rotate(key, cos, sin);
        const Head head = head_of(r, h);
        float* page = head.page(here);
        for (int d = 0; d < D; ++d) page[head.keys + d * PAGE + here % PAGE] = key[d];
        std::memcpy(page + head.values + here % PAGE * D, value, D * sizeof(float));
      }
    }
    for (long r = 0; r < rows; ++r)
      for (long h = 0; h < model.heads; ++h)
        attend(&qkv[r * 3 * inner + h * D], head_of(r, h), std::max(0L, positions[r] + 1 - model.windows[at]),
               positions[r], scores.data(), &mixed[r * inner + h * D]);
    multiply<true>(mixed.data(), rows, inner, layer.out, width, layer.out_bias, x);
    for (long r = 0; r < rows; ++r) normalise(x + r * width, layer.mlp_norm, width, model.eps, &normal[r * width]);
    multiply<false>(normal.data(), rows, width, layer.gate_up, 2 * model.mlp, nullptr, gate_up.data());
    for (long r = 0; r < rows; ++r) gated(&gate_up[r * 2 * model.mlp], model.mlp, &active[r * model.mlp]);
    multiply<true>(active.data(), rows, model.mlp, layer.down, width, nullptr, x);
  }
  long last = 0;
  for (long r = 0; r < rows; ++r)
    if (wanted[r] >= 0) normalise(x + r * width, model.norm, width, model.eps, &normal[last++ * width]);
  std::vector<float> found(last * model.words);
  multiply<false>(normal.data(), last, width, model.head, model.words, model.head_bias, found.data());
  last = 0;
  for (long r = 0; r < rows; ++r)
    if (wanted[r] >= 0)
      std::memcpy(logits + wanted[r] * model.words, &found[last++ * model.words], model.words * sizeof(float));
}

}  // namespace

extern "C" {

// Floats that a matrix [outputs, inputs] takes when it is packed.
long packed_size(long outputs, long inputs) { return (outputs + PANEL - 1) / PANEL * PANEL * inputs; }

void pack(const float* matrix, long outputs, long inputs, float* packed) {
  for (long n = 0; n < packed_size(outputs, 1); ++n)
    for (long k = 0; k < inputs; ++k)
      packed[n / PANEL * PANEL * inputs + k * PANEL + n % PANEL] = n < outputs ? matrix[n * inputs + k] : 0.0f;
}

// Positions that a page holds.
long page_size() { return PAGE; }

// layers: ten pointers each, in the order of Layer. sizes: layers, width, heads, mlp, words, columns of the table.
// x is overwritten. Rows bounds[i] to bounds[i + 1] are computed together and hold whole sequences.
void decode(const void* layers, const long* windows, const long* sizes, const float* cos, const float* sin,
            const float* norm, const float* head, const float* head_bias, float eps, const long* table,
            const long* places, float* x, const long* sequences, const long* positions, const long* wanted,
            const long* bounds, long parts, int threads, float* logits) {
  const Model model{static_cast<const Layer*>(layers), windows, sizes[0], sizes[1], sizes[2], sizes[3], sizes[4],
                    sizes[5], table, places, cos, sin, norm, head, head_bias, eps};
  const Rows rows{x, sequences, positions, wanted};
  // Rows are computed each for itself, so a result does not depend on parts and threads.
  auto some = [&](long worker) {
    for (long part = worker; part < parts; part += threads)
      through(model, rows, bounds[part], bounds[part + 1], logits);
  };
  std::vector<std::thread> others;
  for (long worker = 1; worker < std::min<long>(threads, parts); ++worker) others.emplace_back(some, worker);
  some(0);
  for (auto& other : others) other.join();
}
}
