// What a layer does between its matrix products on a CPU, forward and backward; read and written in fp32 or bf16,
// computed in fp32. Each pass reads and writes its tensors once or twice, where PyTorch's own operations do so often.
//
// Shapes: N rows, D values of a row, a multiple of 16, I inner values. All tensors lie densely.

#include "rows.h"

namespace {

template <typename Number>
inline float add_and_measure(const Number* x, const Number* update, long width, float eps, Number* sum) {
  Vector squares = {};
  for (long i = 0; i < width; i += LANES) {
    Vector value = load(x + i);
    if (update) {
      store(sum + i, value + load(update + i));
      value = load(sum + i);  // as it was rounded: so the backward pass finds it
    }
    squares += value * value;
  }
  return factor_of(squares, width, eps);
}

template <typename Number>
void norm_forward(const Number* x, const Number* update, const Number* weight, float eps, long count, long width,
                  int threads, Parallel parallel, Number* sum, Number* output) {
  over_rows(count, PART, threads, parallel, [=](long start, long stop, long, float* factors) {
    for (long n = start; n < stop; ++n)
      factors[n - start] = add_and_measure(x + n * width, update ? update + n * width : nullptr, width, eps,
                                           update ? sum + n * width : nullptr);
    const Number* from = update ? sum : x;
    for (long n = start; n < stop; ++n)
      for (long i = 0; i < width; i += LANES)
        store(output + n * width + i, load(from + n * width + i) * factors[n - start] * load(weight + i));
  });
}

// `past`, the gradient of the sum from what else reads it, may be null; so may weight_slopes [parts of PART rows, D].
template <typename Number>
void norm_backward(const Number* x, const Number* weight, const Number* slope, const Number* past, float eps,
                   long count, long width, int threads, Parallel parallel, Number* x_slope, float* weight_slopes) {
  over_rows(count, 2 * PART, threads, parallel, [=](long start, long stop, long part, float* pulls) {
    for (long n = start; n < stop; ++n) {
      Vector squares = {}, along = {};
      for (long i = 0; i < width; i += LANES) {
        const Vector value = load(x + n * width + i);
        squares += value * value;
        along += value * load(slope + n * width + i) * load(weight + i);
      }
      const Pull pull(squares, along, width, eps);
      pulls[2 * (n - start)] = pull.factor, pulls[2 * (n - start) + 1] = pull.drag;
    }
    float* sums = weight_slopes ? weight_slopes + part * width : nullptr;
    if (sums) std::fill(sums, sums + width, 0.0f);
    for (long n = start; n < stop; ++n) {
      const float factor = pulls[2 * (n - start)], drag = pulls[2 * (n - start) + 1];
      for (long i = 0; i < width; i += LANES) {
        const Vector value = load(x + n * width + i), down = load(slope + n * width + i) * factor;
        if (sums) store(sums + i, load(sums + i) + down * value);
        Vector change = down * load(weight + i) - value * drag;
        if (past) change += load(past + n * width + i);
        store(x_slope + n * width + i, change);
      }
    }
  });
}

// A vector of which the first `count` lanes are read or written.
template <typename Number>
inline Vector load_some(const Number* at, long count) {
  Number lanes[LANES] = {};
  std::copy(at, at + count, lanes);
  return load(lanes);
}
template <typename Number>
inline void store_some(Number* at, Vector value, long count) {
  Number lanes[LANES];
  store(lanes, value);
  std::copy(lanes, lanes + count, at);
}

// silu(gate) * up, of gate and up side by side [N, 2, I].
template <typename Number>
void gated_forward(const Number* both, long count, long width, int threads, Parallel parallel, Number* output) {
  over_rows(count, 0, threads, parallel, [=](long start, long stop, long, float*) {
    for (long n = start; n < stop; ++n) {
      const Number *gate = both + 2 * n * width, *up = gate + width;
      Number* to = output + n * width;
      long i = 0;
      for (; i + LANES <= width; i += LANES) {
        const Vector x = load(gate + i);
        store(to + i, x * sigmoid(x) * load(up + i));
      }
      if (i < width) {
        const Vector x = load_some(gate + i, width - i);
        store_some(to + i, x * sigmoid(x) * load_some(up + i, width - i), width - i);
      }
    }
  });
}

struct GatedSlopes {
  Vector gate, up;
  GatedSlopes(Vector x, Vector up_value, Vector slope) {
    const Vector share = sigmoid(x);
    up = slope * x * share;
    gate = slope * up_value * share * (1.0f + x * (1.0f - share));
  }
};

template <typename Number>
void gated_backward(const Number* both, const Number* slope, long count, long width, int threads, Parallel parallel,
                    Number* both_slope) {
  over_rows(count, 0, threads, parallel, [=](long start, long stop, long, float*) {
    for (long n = start; n < stop; ++n) {
      const Number *gate = both + 2 * n * width, *up = gate + width, *down = slope + n * width;
      Number *to_gate = both_slope + 2 * n * width, *to_up = to_gate + width;
      long i = 0;
      for (; i + LANES <= width; i += LANES) {
        const GatedSlopes found(load(gate + i), load(up + i), load(down + i));
        store(to_gate + i, found.gate);
        store(to_up + i, found.up);
      }
      if (const long rest = width - i) {
        const GatedSlopes found(load_some(gate + i, rest), load_some(up + i, rest), load_some(down + i, rest));
        store_some(to_gate + i, found.gate, rest);
        store_some(to_up + i, found.up, rest);
      }
    }
  });
}

}  // namespace

// `half`: tensors are bf16, but gradients of weights, which are fp32. `parallel` may be null.
extern "C" {

int rows_of_a_part() { return PART; }

void layer_norm_forward(int half, void* x, void* update, void* weight, float eps, long count, long width, int threads,
                        Parallel parallel, void* sum, void* output) {
  FOR_NUMBERS(norm_forward(P(x), P(update), P(weight), eps, count, width, threads, parallel, P(sum), P(output)));
}

void layer_norm_backward(int half, void* x, void* weight, void* slope, void* past, float eps, long count, long width,
                         int threads, Parallel parallel, void* x_slope, float* weight_slopes) {
  FOR_NUMBERS(norm_backward(P(x), P(weight), P(slope), P(past), eps, count, width, threads, parallel, P(x_slope),
                            weight_slopes));
}

void layer_gated_forward(int half, void* both, long count, long width, int threads, Parallel parallel, void* output) {
  FOR_NUMBERS(gated_forward(P(both), count, width, threads, parallel, P(output)));
}

void layer_gated_backward(int half, void* both, void* slope, long count, long width, int threads, Parallel parallel,
                          void* both_slope) {
  FOR_NUMBERS(gated_backward(P(both), P(slope), count, width, threads, parallel, P(both_slope)));
}
}
