// Products of bf16 matrices by AMX: tiles of 16 rows of 64 bytes, and the orders in which a product wants its operands.
//
// A product adds to C, [16, 16] in fp32, A times B:
//   A: [16, 32] bf16, row by row;
//   B: [32, 16] bf16, "paired": row k holds (B[2k][n], B[2k + 1][n]) for each column n.
// Every tile here is 1 KiB that lies in one piece, or 16 rows of a matrix whose rows are further apart.

#pragma once

#include <cstdlib>
#include <memory>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vectors.h"

namespace {

constexpr int SIDE = 16, DEPTH = 32;               // a tile's rows and columns in fp32; its columns in bf16
constexpr int TILE_OF_HALVES = SIDE * DEPTH, TILE_OF_FLOATS = SIDE * SIDE;

// Whether this process may use tiles: Linux grants them on request.
inline bool tiles_granted() {
  constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
  return granted;
}

// All eight registers hold full tiles in the thread that made one of these, while it lives.
struct FullTiles {
  FullTiles() {
    struct alignas(64) {
      unsigned char palette = 1, start = 0, reserved[14] = {};
      unsigned short bytes[16] = {};
      unsigned char rows[16] = {};
    } shape;
    for (int i = 0; i < 8; ++i) shape.bytes[i] = 64, shape.rows[i] = SIDE;
    asm volatile("ldtilecfg %0" ::"m"(shape) : "memory");
  }
  ~FullTiles() { asm volatile("tilerelease" ::: "memory"); }
  FullTiles(const FullTiles&) = delete;
};

// Compilers' own intrinsics do not say that a load reads memory, so that stores before it could move behind it.
template <int REGISTER>
inline void tile_load(const void* at, long bytes_between_rows) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(at), "r"(bytes_between_rows), "i"(REGISTER) : "memory");
}
template <int REGISTER>
inline void tile_store(void* at) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(at), "r"(64L), "i"(REGISTER) : "memory");
}
template <int REGISTER>
inline void tile_clear() {
  asm volatile("tilezero %%tmm%c0" ::"i"(REGISTER));
}
template <int C, int A, int B>
inline void tile_product() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

// Two tiles' places: an operand's or a result's.
template <typename Number>
struct Two {
  Number *one, *other;
};

// C[a][b] (+)= sum over steps of A[a] B[b]: four products of tiles at a time, since each operand then serves twice.
// Rows of A are `row` bytes apart; an operand's next tiles lie `next_a` and `next_b` halves behind.
template <bool ADD>
inline void four_products(Two<const Half> a, long row, long next_a, Two<const Half> b, long next_b, int steps,
                          Two<float> c_one, Two<float> c_other) {
  if (ADD) {
    tile_load<0>(c_one.one, 64), tile_load<1>(c_one.other, 64);
    tile_load<2>(c_other.one, 64), tile_load<3>(c_other.other, 64);
  } else {
    tile_clear<0>(), tile_clear<1>(), tile_clear<2>(), tile_clear<3>();
  }
  for (int step = 0; step < steps; ++step) {
    tile_load<4>(a.one + step * next_a, row), tile_load<6>(b.one + step * next_b, 64);
    tile_product<0, 4, 6>();
    tile_load<7>(b.other + step * next_b, 64);
    tile_product<1, 4, 7>();
    tile_load<5>(a.other + step * next_a, row);
    tile_product<2, 5, 6>();
    tile_product<3, 5, 7>();
  }
  tile_store<0>(c_one.one), tile_store<1>(c_one.other);
  tile_store<2>(c_other.one), tile_store<3>(c_other.other);
}

template <typename Number>
struct Buffer {  // aligned to a line of the cache, filled with zeros
  explicit Buffer(long size) {
    const long bytes = (size * sizeof(Number) + 63) / 64 * 64;
    at.reset(static_cast<Number*>(std::aligned_alloc(64, bytes)));
    std::memset(at.get(), 0, bytes);
  }
  operator Number*() const { return at.get(); }

 private:
  struct Free {
    void operator()(Number* of) const { std::free(of); }
  };
  std::unique_ptr<Number[], Free> at;
};

// The transpose of 16 rows of 16 values of 32 bits (a number each, or two halves).
inline void turn(__m512i (&row)[16]) {
  __m512i step[16];
  for (int i = 0; i < 16; i += 2) {
    step[i] = _mm512_unpacklo_epi32(row[i], row[i + 1]);
    step[i + 1] = _mm512_unpackhi_epi32(row[i], row[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      row[i + 2 * j] = _mm512_unpacklo_epi64(step[i + j], step[i + j + 2]);
      row[i + 2 * j + 1] = _mm512_unpackhi_epi64(step[i + j], step[i + j + 2]);
    }
  for (int i = 0; i < 16; i += 8)
    for (int j = 0; j < 4; ++j) {
      step[i + j] = _mm512_shuffle_i32x4(row[i + j], row[i + j + 4], 0x88);
      step[i + j + 4] = _mm512_shuffle_i32x4(row[i + j], row[i + j + 4], 0xdd);
    }
  for (int j = 0; j < 8; ++j) {
    row[j] = _mm512_shuffle_i32x4(step[j], step[j + 8], 0x88);
    row[j + 8] = _mm512_shuffle_i32x4(step[j], step[j + 8], 0xdd);
  }
}

// 16 rows of 32 halves, `stride` halves apart -> the paired tile of their transpose: [2k, 2k + 1] of each row.
inline void turned(const Half* rows, long stride, Half* tile) {
  __m512i row[16];
  for (int r = 0; r < 16; ++r) row[r] = _mm512_loadu_si512(rows + r * stride);
  turn(row);
  for (int r = 0; r < 16; ++r) _mm512_store_si512(tile + r * DEPTH, row[r]);
}

// Two rows of 32 halves -> (of the first, of the second) for each of 32 columns.
inline void pair_rows(__m512i one, __m512i other, __m512i& left, __m512i& right) {
  const __m512i low = _mm512_unpacklo_epi16(one, other), high = _mm512_unpackhi_epi16(one, other);
  left = _mm512_permutex2var_epi64(low, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high);
  right = _mm512_permutex2var_epi64(low, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), high);
}

// 32 rows of 32 halves, `stride` apart -> two paired tiles, of the columns 0 to 15 and 16 to 31.
inline void paired(const Half* rows, long stride, Half* tiles) {
  for (int k = 0; k < SIDE; ++k) {
    const Half* at = rows + 2 * k * stride;
    __m512i left, right;
    pair_rows(_mm512_loadu_si512(at), _mm512_loadu_si512(at + stride), left, right);
    _mm512_store_si512(tiles + k * DEPTH, left);
    _mm512_store_si512(tiles + TILE_OF_HALVES + k * DEPTH, right);
  }
}

// 32 rows of 32 halves, `stride` apart -> two tiles of their transpose, row by row: columns 0 to 15 and 16 to 31.
inline void across(const Half* rows, long stride, Half* tiles) {
  __m512i left[16], right[16];
  for (int k = 0; k < SIDE; ++k) {
    const Half* at = rows + 2 * k * stride;
    pair_rows(_mm512_loadu_si512(at), _mm512_loadu_si512(at + stride), left[k], right[k]);
  }
  turn(left);
  turn(right);
  for (int k = 0; k < SIDE; ++k) {
    _mm512_store_si512(tiles + k * DEPTH, left[k]);
    _mm512_store_si512(tiles + TILE_OF_HALVES + k * DEPTH, right[k]);
  }
}

inline __m256i halves_of(__m512 value) { return (__m256i)_mm512_cvtneps_pbh(value); }

// (of the first, of the second) as halves, for each of 16 lanes.
inline __m512i paired_halves(__m256i one, __m256i other) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(one), _mm512_slli_epi32(_mm512_cvtepu16_epi32(other), 16));
}

// 2^x to about 3e-6, relative (Taylor of degree 5, |rest| <= 0.5); x <= 127, and 0 for what lies below -200.
inline __m512 power_of_two(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-200.0f), x);  // in this order a NaN stays
  const __m512 whole = _mm512_roundscale_ps(x, 0), rest = _mm512_sub_ps(x, whole);
  __m512 sum = _mm512_set1_ps(1.33335581e-3f);
  for (float next : {9.61812911e-3f, 5.55041087e-2f, 0.240226507f, 0.693147181f, 1.0f})
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(next));
  return _mm512_scalef_ps(sum, whole);
}

}  // namespace
