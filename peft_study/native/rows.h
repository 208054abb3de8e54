// What the kernels that go by rows share: parts of a fixed number of rows, and what an RMS norm of a row needs.

#pragma once

#include <cmath>
#include <vector>

#include "threads.h"
#include "vectors.h"

namespace {

constexpr long PART = 64;  // that one thread takes at a time, and that a sum over rows is made of

// Calls work(first row, row after the last, number of the part, room for `room` values).
template <typename Work>
void over_rows(long count, long room, int threads, Parallel parallel, Work work) {
  share_out((count + PART - 1) / PART, threads, parallel, [=] { return std::vector<float>(room); },
            [&](long part, std::vector<float>& values) {
              work(part * PART, std::min(count, (part + 1) * PART), part, values.data());
            });
}

// An RMS norm's factor, 1 / rms. Rows get theirs before any is used: one has to wait for sum, root and quotient, many
// do so at once.
inline float factor_of(Vector squares, long width, float eps) {
  return 1.0f / std::sqrt(total_of(squares) / width + eps);
}

// What the gradient of a row's x is made of: slope * weight * factor - x * drag.
struct Pull {
  float factor, drag;
  Pull(Vector squares, Vector along, long width, float eps)
      : factor(factor_of(squares, width, eps)), drag(factor * factor * factor * total_of(along) / width) {}
};

}  // namespace
