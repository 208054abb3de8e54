// What the kernels share: vectors as wide as a register, and what is computed with them.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

// A vector is what a register holds: compilers take a wider one apart through memory, ten times as slow.
#if defined(__AVX512F__)
constexpr int LANES = 16, REGISTERS = 32;
#elif defined(__AVX__)
constexpr int LANES = 8, REGISTERS = 16;
#else
constexpr int LANES = 4, REGISTERS = 16;
#endif

typedef float Vector __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));
typedef int IntVector __attribute__((vector_size(LANES * sizeof(int)), aligned(4), may_alias));

inline Vector load(const float* at) { return *reinterpret_cast<const Vector*>(at); }
inline void store(float* at, Vector value) { *reinterpret_cast<Vector*>(at) = value; }

typedef unsigned short Half;  // bf16: the upper half of a float
typedef Half HalfVector __attribute__((vector_size(LANES * sizeof(Half)), aligned(2), may_alias));
typedef unsigned BitVector __attribute__((vector_size(LANES * sizeof(unsigned)), aligned(4), may_alias));

inline Vector load(const Half* at) {
#if defined(__AVX512F__)
  // What compilers make of the lines below takes three times as many instructions.
  return Vector(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)at)), 16));
#else
  BitVector bits = __builtin_convertvector(*reinterpret_cast<const HalfVector*>(at), BitVector) << 16;
  Vector value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}
inline void store(Half* at, Vector value) {  // to the nearest, ties to even
#if defined(__AVX512BF16__)
  _mm256_storeu_si256((__m256i*)at, (__m256i)_mm512_cvtneps_pbh(__m512(value)));
#else
  BitVector bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits += 0x7fff + (bits >> 16 & 1);
  bits = value == value ? bits : BitVector{} + 0x7fc00000;
  *reinterpret_cast<HalfVector*>(at) = __builtin_convertvector(bits >> 16, HalfVector);
#endif
}
inline Vector splat(float value) { return value - Vector{}; }

inline float total_of(Vector value) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(__m512(value));  // the same sums as below, without a way through memory
#else
  float at[LANES];
  store(at, value);
  for (int width = LANES / 2; width; width /= 2)
    for (int i = 0; i < width; ++i) at[i] += at[i + width];
  return at[0];
#endif
}

inline float largest_of(Vector value) {
  float at[LANES];
  store(at, value);
  for (int width = LANES / 2; width; width /= 2)
    for (int i = 0; i < width; ++i) at[i] = std::max(at[i], at[i + width]);
  return at[0];
}

inline IntVector lanes_from(int start) {
  IntVector lanes;
  for (int i = 0; i < LANES; ++i) lanes[i] = start + i;
  return lanes;
}

// exp of x <= 0 to about 2e-7, relative: 2^whole times a polynomial of degree 6 in the rest (Taylor of 2^x, |x| <= 0.5).
inline Vector exponential(Vector x) {
  x = x < splat(-87.0f) ? splat(-87.0f) : x;
  Vector scaled = x * 1.44269504f;
  IntVector whole = __builtin_convertvector(scaled - 0.5f, IntVector);  // truncation: rounds, since scaled <= 0
  Vector rest = (scaled - __builtin_convertvector(whole, Vector)) * 0.693147181f;
  Vector sum = splat(1.0f / 720);
  sum = sum * rest + 1.0f / 120;
  sum = sum * rest + 1.0f / 24;
  sum = sum * rest + 1.0f / 6;
  sum = sum * rest + 0.5f;
  sum = sum * rest + 1.0f;
  sum = sum * rest + 1.0f;
  IntVector power = (whole + 127) << 23;
  Vector scale;
  std::memcpy(&scale, &power, sizeof scale);
  return sum * scale;
}

// 1 / (1 + exp(-x)); the division is by 1 to 2: a line, and three steps of Newton's, which leave an error of 2e-10.
inline Vector sigmoid(Vector x) {
  const Vector small = exponential(x < Vector{} ? x : -x), whole = small + 1.0f;
  Vector inverse = 24.0f / 17 - whole * (8.0f / 17);
  for (int i = 0; i < 3; ++i) inverse *= 2.0f - whole * inverse;
  return x < Vector{} ? small * inverse : inverse;
}

}  // namespace

// Calls with P, a pointer to the numbers that `half` says: bf16 or fp32.
#define FOR_NUMBERS(call)        \
  auto run = [&](auto number) {  \
    typedef decltype(number)* P; \
    call;                        \
  };                             \
  half ? run(Half{}) : run(float{})
