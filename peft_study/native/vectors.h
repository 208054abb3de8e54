// What the kernels share: vectors as wide as a register, and what is computed with them.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

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
  BitVector bits = __builtin_convertvector(*reinterpret_cast<const HalfVector*>(at), BitVector) << 16;
  Vector value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline void store(Half* at, Vector value) {
  BitVector bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits += 0x7fff + (bits >> 16 & 1);  // to the nearest, ties to even
  bits = value == value ? bits : BitVector{} + 0x7fc00000;
  *reinterpret_cast<HalfVector*>(at) = __builtin_convertvector(bits >> 16, HalfVector);
}
inline Vector splat(float value) { return value - Vector{}; }

inline float total_of(Vector value) {
  float at[LANES];
  store(at, value);
  for (int width = LANES / 2; width; width /= 2)
    for (int i = 0; i < width; ++i) at[i] += at[i + width];
  return at[0];
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

}  // namespace
