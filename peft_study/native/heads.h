// Queries and keys on their way to attention, forward and backward: normed and rotated by position; computed in fp32.
//
// Shapes: N positions of all windows, H heads, D values a head, T positions of a window. All tensors lie densely.

#pragma once

#include "rows.h"
#include "vectors.h"

namespace {

constexpr int HALF = D / 2;

// A head's rotation by position t: cos and sin [T, D], pairs are (i, i + D / 2).
struct Turn {
  const float *cos, *sin;
  void forward(float* x, long t) const {
    const float *c = cos + D * t, *s = sin + D * t;
    for (int i = 0; i < HALF; ++i) {
      const float one = x[i], two = x[HALF + i];
      x[i] = one * c[i] - two * s[i];
      x[HALF + i] = two * c[HALF + i] + one * s[HALF + i];
    }
  }
  void backward(float* slope, long t) const {
    const float *c = cos + D * t, *s = sin + D * t;
    for (int i = 0; i < HALF; ++i) {
      const float one = slope[i], two = slope[HALF + i];
      slope[i] = one * c[i] + two * s[HALF + i];
      slope[HALF + i] = two * c[HALF + i] - one * s[i];
    }
  }
};

// Queries and keys of qkv [N, 3, H, D], normed and rotated, to [N, 2, H, D]; weights: of the norms [2, D].
template <typename Number>
void turned_forward(const Number* qkv, const float* weights, Turn turn, float eps, long count, long heads, long length,
                   int threads, Parallel parallel, Number* output) {
  over_rows(count, 2 * heads * PART, threads, parallel, [=](long start, long stop, long, float* factors) {
    float* factor = factors;
    for (long n = start; n < stop; ++n)
      for (long head = 0; head < 2 * heads; ++head) {
        const Number* from = qkv + (n * 3 * heads + head) * D;
        Vector squares = {};
        for (int i = 0; i < D; i += LANES) squares += load(from + i) * load(from + i);
        *factor++ = factor_of(squares, D, eps);
      }
    factor = factors;
    for (long n = start; n < stop; ++n)
      for (long head = 0; head < 2 * heads; ++head) {
        const Number* from = qkv + (n * 3 * heads + head) * D;
        Number* to = output + (n * 2 * heads + head) * D;
        const float *weight = weights + head / heads * D, by = *factor++;
        float row[D];
        for (int i = 0; i < D; i += LANES) store(row + i, load(from + i) * by * load(weight + i));
        turn.forward(row, n % length);
        for (int i = 0; i < D; i += LANES) store(to + i, load(row + i));
      }
  });
}

// In place: of `slopes` [N, 3, H, D] the first two sides become those of qkv. weight_slopes: [parts, 2, D] or null.
template <typename Number>
void turned_backward(const Number* qkv, const float* weights, Turn turn, float eps, long count, long heads, long length,
                    int threads, Parallel parallel, Number* slopes, float* weight_slopes) {
  over_rows(count, 0, threads, parallel, [=](long start, long stop, long part, float*) {
    float sums[2][D] = {};
    for (long n = start; n < stop; ++n)
      for (long head = 0; head < 2 * heads; ++head) {
        const long at = (n * 3 * heads + head) * D, side = head / heads;
        const float* weight = weights + side * D;
        float down[D];
        for (int i = 0; i < D; i += LANES) store(down + i, load(slopes + at + i));
        turn.backward(down, n % length);
        Vector squares = {}, along = {};
        for (int i = 0; i < D; i += LANES) {
          const Vector value = load(qkv + at + i);
          squares += value * value;
          along += value * load(down + i) * load(weight + i);
        }
        const Pull pull(squares, along, D, eps);
        for (int i = 0; i < D; i += LANES) {
          const Vector value = load(qkv + at + i), scaled = load(down + i) * pull.factor;
          if (weight_slopes) store(sums[side] + i, load(sums[side] + i) + scaled * value);
          store(slopes + at + i, scaled * load(weight + i) - value * pull.drag);
        }
      }
    if (weight_slopes) std::copy(sums[0], sums[0] + 2 * D, weight_slopes + part * 2 * D);
  });
}

}  // namespace
