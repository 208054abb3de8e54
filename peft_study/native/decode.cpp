// Generation of a Qwen3 in fp32 on a CPU: tokens, a row each, through all layers, to the logits of those that want them.
//
// Only rows of one sequence meet, so each thread takes some sequences through the whole model. A row reads and writes the
// slot of its sequence in the cache, and of that only what it sees: sequences come, go, fork and go back without a copy.
//
// Shapes: D = HEAD_WIDTH values a head (set when compiled), H heads, width = H * D or another, S tokens a slot holds.
// keys: [slots, H, S / STRETCH, D, STRETCH], so that logits of neighbours are computed together and what is read lies
// together; values: [slots, H, S, D]. A matrix [N, K] is packed: panels of PANEL rows, each [K, PANEL], the last one filled with zeros.

#include <thread>
#include <vector>

#include "vectors.h"

namespace {

constexpr int D = HEAD_WIDTH;
static_assert(D % 16 == 0, "the width of a head is a multiple of 16");

constexpr int PARTS = D / LANES;
constexpr int PANEL = 2 * LANES;
constexpr int BLOCKS = 4, STRETCH = BLOCKS * LANES;  // positions whose logits are summed at once
constexpr int ROWS = REGISTERS >= 32 ? 12 : 6;  // rows at a time: ROWS * 2 sums stay in registers

// out[r, n] (+)= in[r, :] . matrix[n, :] (+ bias[n])
template <bool ADD>
void multiply(const float* in, long rows, long inputs, const float* packed, long outputs, const float* bias,
              float* out) {
  for (long n = 0; n < outputs; n += PANEL) {
    const float* panel = packed + n * inputs;
    const long there = std::min<long>(PANEL, outputs - n);
    for (long start = 0; start < rows; start += ROWS) {
      const float* row[ROWS];
      for (int r = 0; r < ROWS; ++r) row[r] = in + std::min(start + r, rows - 1) * inputs;
      Vector sums[ROWS][2] = {};
      for (long k = 0; k < inputs; ++k) {
        const Vector left = load(panel + k * PANEL), right = load(panel + k * PANEL + LANES);
        for (int r = 0; r < ROWS; ++r) {
          sums[r][0] += left * row[r][k];
          sums[r][1] += right * row[r][k];
        }
      }
      for (int r = 0; r < ROWS && start + r < rows; ++r) {
        float found[PANEL];
        store(found, sums[r][0]);
        store(found + LANES, sums[r][1]);
        float* to = out + (start + r) * outputs + n;
        for (long i = 0; i < there; ++i) {
          const float value = found[i] + (bias ? bias[n + i] : 0.0f);
          to[i] = ADD ? to[i] + value : value;
        }
      }
    }
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

// The softmax of query . keys[first .. last] over `scale`, times the values.
void attend(const float* query, const float* keys, const float* values, long first, long last, float* logits,
            float* out) {
  const float scale = 1 / std::sqrt(static_cast<float>(D));
  const long left = first / STRETCH * STRETCH, right = last + 1;
  Vector largest = splat(-INFINITY);
  for (long s = left; s < right; s += STRETCH) {
    Vector sums[BLOCKS] = {};
    for (int d = 0; d < D; ++d)
      for (int b = 0; b < BLOCKS; ++b) sums[b] += load(keys + s * D + d * STRETCH + b * LANES) * query[d];
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
  long s = first;
  for (; s + 1 < right; s += 2)
    for (int p = 0; p < PARTS; ++p) {
      even[p] += load(values + s * D + p * LANES) * logits[s];
      odd[p] += load(values + (s + 1) * D + p * LANES) * logits[s + 1];
    }
  if (s < right)
    for (int p = 0; p < PARTS; ++p) even[p] += load(values + s * D + p * LANES) * logits[s];
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
  float *keys, *values;
};

struct Model {
  const Layer* layers;
  const long* windows;  // tokens that each layer sees, the last one included
  long num_layers, width, heads, mlp, words, capacity;
  const float *cos, *sin;  // [positions, D]
  const float *norm, *head;
  float eps;
};

struct Rows {  // those of a sequence stand together, in their order
  float* x;                // [rows, width], the embeddings
  const long *slots, *positions;
  const long* wanted;  // row of the logits, negative for none
};

void through(const Model& model, const Rows& all, long begin, long end, float* logits) {
  const long rows = end - begin, width = model.width, inner = model.heads * D;
  float* x = all.x + begin * width;
  const long *slots = all.slots + begin, *positions = all.positions + begin, *wanted = all.wanted + begin;
  std::vector<float> normal(rows * width), qkv(rows * 3 * inner), mixed(rows * inner), gate_up(rows * 2 * model.mlp);
  std::vector<float> active(rows * model.mlp), scores(model.capacity);
  for (long at = 0; at < model.num_layers; ++at) {
    const Layer& layer = model.layers[at];
    for (long r = 0; r < rows; ++r)
      normalise(x + r * width, layer.attention_norm, width, model.eps, &normal[r * width]);
    multiply<false>(normal.data(), rows, width, layer.qkv, 3 * inner, layer.qkv_bias, qkv.data());
    auto place = [&](long r, long h) { return (slots[r] * model.heads + h) * model.capacity * D; };
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
        float* block = layer.keys + place(r, h) + here / STRETCH * STRETCH * D + here % STRETCH;
        for (int d = 0; d < D; ++d) block[d * STRETCH] = key[d];
        std::memcpy(layer.values + place(r, h) + here * D, value, D * sizeof(float));
      }
    }
    for (long r = 0; r < rows; ++r)
      for (long h = 0; h < model.heads; ++h)
        attend(&qkv[r * 3 * inner + h * D], layer.keys + place(r, h), layer.values + place(r, h),
               std::max(0L, positions[r] + 1 - model.windows[at]), positions[r], scores.data(),
               &mixed[r * inner + h * D]);
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
  multiply<false>(normal.data(), last, width, model.head, model.words, nullptr, found.data());
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

// Positions that the cache has room for are a multiple of this.
long stretch() { return STRETCH; }

// layers: twelve pointers each, in the order of Layer. sizes: layers, width, heads, mlp, words, capacity.
// x is overwritten. Rows bounds[i] to bounds[i + 1] are computed together and hold whole sequences.
void decode(const void* layers, const long* windows, const long* sizes, const float* cos, const float* sin,
            const float* norm, const float* head, float eps, float* x, const long* slots, const long* positions,
            const long* wanted, const long* bounds, long parts, int threads, float* logits) {
  const Model model{static_cast<const Layer*>(layers), windows, sizes[0], sizes[1], sizes[2], sizes[3],
                    sizes[4], sizes[5], cos, sin, norm, head, eps};
  const Rows rows{x, slots, positions, wanted};
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
