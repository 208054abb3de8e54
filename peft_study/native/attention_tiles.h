// The heads of attention.cpp in bf16 by AMX tiles: products of bf16 numbers summed in fp32, weights rounded to bf16
// before they meet the values, as flash attention does.
//
// Everything is computed transposed, [keys, queries]: lanes are queries, so that a softmax goes down the rows and needs
// no sums across lanes. 32 queries at a time meet 32 keys at a time; P is T up to a multiple of 32, with zeros.

#pragma once

#include "tiles.h"

namespace {

constexpr int CHUNKS = D / DEPTH, SPANS = D / SIDE;  // of a head: pieces of 32 and of 16 values
constexpr long TILE_ROW = 64, HEAD_ROW = D * sizeof(Half);  // bytes
constexpr float LOG2E = 1.44269504f, LN2 = 0.693147181f;

struct TileScratch {  // of one head
  FullTiles full;
  int padded;
  Buffer<Half> queries, keys, values, outputs, slopes;  // [P, D]
  Buffer<Half> query_turned, slope_turned;              // tiles [P / 16][CHUNKS]: [values, positions], paired
  Buffer<Half> query_paired, slope_paired;              // tiles [P / 32][SPANS]: [positions, values], paired
  Buffer<Half> keys_across, values_across;              // tiles [P / 32][SPANS]: [values, positions]
  Buffer<float> logits, changes;                        // tiles [P / 16][2]: [keys, queries]
  Buffer<Half> weights_paired, changes_paired;          // tiles [P / 32][2]: [keys, queries], paired
  Buffer<Half> weight_rows, change_rows;                // tiles [2]: [keys, 32 queries]
  Buffer<float> columns;                                // tiles [SPANS][2]: [values, queries]
  Buffer<float> key_slopes, value_slopes;               // tiles [P / 16][SPANS]: [keys, values]
  Buffer<float> means, logsums;                         // [P]
  Buffer<int> first, last;                              // [P]: what a query sees; the padding nothing
  explicit TileScratch(int length)
      : padded((length + DEPTH - 1) / DEPTH * DEPTH), queries(padded * D), keys(padded * D), values(padded * D),
        outputs(padded * D), slopes(padded * D), query_turned(padded * D), slope_turned(padded * D),
        query_paired(padded * D), slope_paired(padded * D), keys_across(padded * D), values_across(padded * D),
        logits(padded * DEPTH), changes(2 * 2 * TILE_OF_FLOATS), weights_paired(padded * DEPTH),
        changes_paired(2 * TILE_OF_HALVES), weight_rows(2 * TILE_OF_HALVES), change_rows(2 * TILE_OF_HALVES),
        columns(SPANS * 2 * TILE_OF_FLOATS), key_slopes(padded * D), value_slopes(padded * D), means(padded),
        logsums(padded), first(padded), last(padded) {}
};

inline void gather(const View<Half>& from, long b, long h, int length, Half* to) {
  for (int t = 0; t < length; ++t) std::memcpy(to + t * D, from.row(b, h, t), HEAD_ROW);
}

inline void look(const int* see, int length, TileScratch& scratch) {
  for (int t = 0; t < scratch.padded; ++t) {
    scratch.first[t] = t < length ? see[t] : scratch.padded;
    scratch.last[t] = t < length ? t : -1;
  }
}

inline void all_turned(const Half* rows, int padded, Half* tiles) {
  for (int t = 0; t < padded; t += SIDE)
    for (int c = 0; c < CHUNKS; ++c, tiles += TILE_OF_HALVES) turned(rows + t * D + c * DEPTH, D, tiles);
}

inline void all_paired(const Half* rows, int padded, Half* tiles) {
  for (int t = 0; t < padded; t += DEPTH)
    for (int c = 0; c < CHUNKS; ++c, tiles += 2 * TILE_OF_HALVES) paired(rows + t * D + c * DEPTH, D, tiles);
}

inline void all_across(const Half* rows, int padded, Half* tiles) {
  for (int t = 0; t < padded; t += DEPTH)
    for (int c = 0; c < CHUNKS; ++c, tiles += 2 * TILE_OF_HALVES) across(rows + t * D + c * DEPTH, D, tiles);
}

struct Queries {  // 16 of them, a lane each, and the keys [low, high) that any sees, in pairs
  __m512i first, last;
  int low, high;
  Queries(const TileScratch& scratch, int start)
      : first(_mm512_load_si512(scratch.first + start)), last(_mm512_load_si512(scratch.last + start)) {
    low = _mm512_reduce_min_epi32(first) & ~1;
    high = (_mm512_reduce_max_epi32(last) + 2) & ~1;
  }
  __mmask16 see(int key) const {
    const __m512i at = _mm512_set1_epi32(key);
    return _mm512_cmple_epi32_mask(first, at) & _mm512_cmple_epi32_mask(at, last);
  }
};

// tiles[a][b] = keys a times queries b, of 32 keys from `key` on and 32 queries from `query` on: [keys, queries]
inline void scores(const Half* keys, int key, const Half* queries_turned, int query, float* tiles) {
  const Half *rows = keys + key * D, *columns = queries_turned + query / SIDE * CHUNKS * TILE_OF_HALVES;
  four_products<false>({rows, rows + SIDE * D}, HEAD_ROW, DEPTH, {columns, columns + CHUNKS * TILE_OF_HALVES},
                       TILE_OF_HALVES, CHUNKS, {tiles, tiles + TILE_OF_FLOATS},
                       {tiles + 2 * TILE_OF_FLOATS, tiles + 3 * TILE_OF_FLOATS});
}

// Where row `key` begins in tiles [keys / 16][2].
inline int row_of(int key) { return key / SIDE * 2 * TILE_OF_FLOATS + key % SIDE * SIDE; }

// [values, queries] times a factor for each query -> rows of `to`, as halves.
inline void write_columns(const float* columns, __m512 factor, int half, const View<Half>& to, long b, long h,
                          int start, int length) {
  for (int e = 0; e < SPANS; ++e) {
    __m512i row[16];
    const float* tile = columns + (e * 2 + half) * TILE_OF_FLOATS;
    for (int r = 0; r < 16; ++r) row[r] = (__m512i)_mm512_mul_ps(_mm512_load_ps(tile + r * SIDE), factor);
    turn(row);
    for (int r = 0; r < std::min(SIDE, length - start); ++r)
      _mm256_storeu_si256((__m256i*)(to.row(b, h, start + r) + e * SIDE), halves_of((__m512)row[r]));
  }
}

// The weights of 16 queries from their logits, not yet divided by `total`, as pairs; what none sees is 0.
inline void softmax(const Queries& queries, int half, int left, int right, float scale, TileScratch& scratch,
                    __m512& top, __m512& total) {
  const __m512 scales = _mm512_set1_ps(scale * LOG2E);
  const float* logits = scratch.logits + half * TILE_OF_FLOATS;
  Half* pairs = scratch.weights_paired + half * TILE_OF_HALVES;
  __m512 largest = _mm512_set1_ps(-INFINITY);
  for (int key = queries.low; key < queries.high; ++key) {
    const __m512 logit = _mm512_mul_ps(_mm512_load_ps(logits + row_of(key - left)), scales);
    largest = _mm512_mask_max_ps(largest, queries.see(key), largest, logit);
  }
  __m512 sum = _mm512_setzero_ps();
  for (int key = left; key < right; key += 2) {
    __m256i weight[2] = {};
    if (key >= queries.low && key < queries.high)
      for (int i = 0; i < 2; ++i) {
        const __m512 logit = _mm512_load_ps(logits + row_of(key + i - left));
        const __m512 power = power_of_two(_mm512_fmsub_ps(logit, scales, largest));
        const __m512 seen = _mm512_maskz_mov_ps(queries.see(key + i), power);
        sum = _mm512_add_ps(sum, seen);
        weight[i] = halves_of(seen);
      }
    const int pair = (key - left) / DEPTH * 2 * TILE_OF_HALVES + (key - left) % DEPTH / 2 * DEPTH;
    _mm512_store_si512(pairs + pair, paired_halves(weight[0], weight[1]));
  }
  top = largest;
  total = sum;
}

inline void forward_by_tiles(const View<Half>& q, const View<Half>& k, const View<Half>& v, const View<Half>& out,
                             long b, long h, const int* see, int length, float scale, float* logsums,
                             TileScratch& scratch) {
  const int padded = scratch.padded;
  gather(q, b, h, length, scratch.queries);
  gather(k, b, h, length, scratch.keys);
  gather(v, b, h, length, scratch.values);
  look(see, length, scratch);
  all_turned(scratch.queries, padded, scratch.query_turned);
  all_across(scratch.values, padded, scratch.values_across);
  for (int start = 0; start < length; start += DEPTH) {
    const Queries halves[2] = {{scratch, start}, {scratch, start + SIDE}};
    const int left = std::min(halves[0].low, halves[1].low) / DEPTH * DEPTH, right = start + DEPTH;
    for (int key = left; key < right; key += DEPTH)
      scores(scratch.keys, key, scratch.query_turned, start, scratch.logits + row_of(key - left));
    __m512 top[2], total[2];
    for (int half = 0; half < 2; ++half)
      softmax(halves[half], half, left, right, scale, scratch, top[half], total[half]);
    const Half *of = scratch.values_across + left / DEPTH * SPANS * TILE_OF_HALVES, *by = scratch.weights_paired;
    for (int e = 0; e < SPANS; e += 2) {
      const Half* values = of + e * TILE_OF_HALVES;
      float* columns = scratch.columns + e * 2 * TILE_OF_FLOATS;
      four_products<false>({values, values + TILE_OF_HALVES}, TILE_ROW, SPANS * TILE_OF_HALVES,
                           {by, by + TILE_OF_HALVES}, 2 * TILE_OF_HALVES, (right - left) / DEPTH,
                           {columns, columns + TILE_OF_FLOATS},
                           {columns + 2 * TILE_OF_FLOATS, columns + 3 * TILE_OF_FLOATS});
    }
    for (int half = 0; half < 2; ++half) {
      const int at = start + half * SIDE;
      const __m512 inverse = _mm512_div_ps(_mm512_set1_ps(1.0f), total[half]);
      write_columns(scratch.columns, inverse, half, out, b, h, at, length);
      for (int r = 0; r < std::min(SIDE, length - at); ++r)
        logsums[at + r] = top[half][r] * LN2 + std::log(total[half][r]);
    }
  }
}

// means[t] = output t . its slope
inline void write_means(TileScratch& scratch) {
  for (int t = 0; t < scratch.padded; t += SIDE) {
    __m512i row[16];
    for (int r = 0; r < 16; ++r) {
      __m512 sum = _mm512_setzero_ps();
      for (int c = 0; c < CHUNKS; ++c) {
        const long at = (t + r) * D + c * DEPTH;
        sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_load_si512(scratch.outputs + at),
                               (__m512bh)_mm512_load_si512(scratch.slopes + at));
      }
      row[r] = (__m512i)sum;
    }
    turn(row);
    __m512 total = (__m512)row[0];
    for (int r = 1; r < 16; ++r) total = _mm512_add_ps(total, (__m512)row[r]);
    _mm512_store_ps(scratch.means + t, total);
  }
}

// Weights and slopes of logits of 16 queries and 32 keys from `start` on: rows for the keys' and values' slopes, pairs
// for the queries'.
inline void changes_of(const Queries& queries, int half, int at, int start, float scale, TileScratch& scratch) {
  const __m512 scales = _mm512_set1_ps(scale * LOG2E), plain = _mm512_set1_ps(scale);
  const __m512 logsum = _mm512_mul_ps(_mm512_load_ps(scratch.logsums + at), _mm512_set1_ps(LOG2E));
  const __m512 mean = _mm512_load_ps(scratch.means + at);
  const float *logits = scratch.logits + half * TILE_OF_FLOATS, *changes = scratch.changes + half * TILE_OF_FLOATS;
  Half *weight_rows = scratch.weight_rows + half * SIDE, *change_rows = scratch.change_rows + half * SIDE;
  Half* pairs = scratch.changes_paired + half * TILE_OF_HALVES;
  const int low = std::max(0, queries.low - start), high = std::min(DEPTH, queries.high - start);
  for (int key = 0; key < DEPTH; key += 2) {
    __m256i weight[2] = {}, change[2] = {};
    if (key >= low && key < high)
      for (int i = 0; i < 2; ++i) {
        const int place = row_of(key + i);
        const __m512 power = power_of_two(_mm512_fmsub_ps(_mm512_load_ps(logits + place), scales, logsum));
        const __m512 seen = _mm512_maskz_mov_ps(queries.see(start + key + i), power);
        const __m512 slope = _mm512_sub_ps(_mm512_load_ps(changes + place), mean);
        weight[i] = halves_of(seen);
        change[i] = halves_of(_mm512_mul_ps(_mm512_mul_ps(seen, plain), slope));
      }
    for (int i = 0; i < 2; ++i) {
      _mm256_store_si256((__m256i*)(weight_rows + (key + i) * DEPTH), weight[i]);
      _mm256_store_si256((__m256i*)(change_rows + (key + i) * DEPTH), change[i]);
    }
    _mm512_store_si512(pairs + key / 2 * DEPTH, paired_halves(change[0], change[1]));
  }
}

// slopes [32 keys, D] += rows [32 keys, 32 queries] times what is paired [32 queries, D]
inline void add_slopes(const Half* rows, const Half* with, float* slopes) {
  for (int e = 0; e < SPANS; e += 2) {
    const Half* columns = with + e * TILE_OF_HALVES;
    float *one = slopes + e * TILE_OF_FLOATS, *other = one + SPANS * TILE_OF_FLOATS;
    four_products<true>({rows, rows + TILE_OF_HALVES}, TILE_ROW, 0, {columns, columns + TILE_OF_HALVES}, 0, 1,
                        {one, one + TILE_OF_FLOATS}, {other, other + TILE_OF_FLOATS});
  }
}

inline void write_rows(const float* tiles, const View<Half>& to, long b, long h, int length) {
  for (int t = 0; t < length; ++t)
    for (int e = 0; e < SPANS; ++e) {
      const float* at = tiles + (t / SIDE * SPANS + e) * TILE_OF_FLOATS + t % SIDE * SIDE;
      _mm256_storeu_si256((__m256i*)(to.row(b, h, t) + e * SIDE), halves_of(_mm512_load_ps(at)));
    }
}

inline void backward_by_tiles(const View<Half>& q, const View<Half>& k, const View<Half>& v, const View<Half>& out,
                              const View<Half>& down, const View<Half>& dq, const View<Half>& dk, const View<Half>& dv,
                              long b, long h, const int* see, int length, float scale, const float* logsums,
                              TileScratch& scratch) {
  const int padded = scratch.padded;
  gather(q, b, h, length, scratch.queries);
  gather(k, b, h, length, scratch.keys);
  gather(v, b, h, length, scratch.values);
  gather(out, b, h, length, scratch.outputs);
  gather(down, b, h, length, scratch.slopes);
  look(see, length, scratch);
  std::memcpy(scratch.logsums, logsums, length * sizeof(float));
  all_turned(scratch.queries, padded, scratch.query_turned);
  all_turned(scratch.slopes, padded, scratch.slope_turned);
  all_paired(scratch.queries, padded, scratch.query_paired);
  all_paired(scratch.slopes, padded, scratch.slope_paired);
  all_across(scratch.keys, padded, scratch.keys_across);
  write_means(scratch);
  std::memset(scratch.key_slopes, 0, padded * D * sizeof(float));
  std::memset(scratch.value_slopes, 0, padded * D * sizeof(float));
  for (int start = 0; start < length; start += DEPTH) {
    const Queries halves[2] = {{scratch, start}, {scratch, start + SIDE}};
    const int left = std::min(halves[0].low, halves[1].low) / DEPTH * DEPTH;
    const long of_queries = start / DEPTH * SPANS * TILE_OF_HALVES;
    std::memset(scratch.columns, 0, SPANS * 2 * TILE_OF_FLOATS * sizeof(float));
    for (int key = left; key <= start; key += DEPTH) {
      scores(scratch.keys, key, scratch.query_turned, start, scratch.logits);
      scores(scratch.values, key, scratch.slope_turned, start, scratch.changes);
      for (int half = 0; half < 2; ++half)
        changes_of(halves[half], half, start + half * SIDE, key, scale, scratch);
      add_slopes(scratch.weight_rows, scratch.slope_paired + of_queries, scratch.value_slopes + key * D);
      add_slopes(scratch.change_rows, scratch.query_paired + of_queries, scratch.key_slopes + key * D);
      const Half *of = scratch.keys_across + key / DEPTH * SPANS * TILE_OF_HALVES, *by = scratch.changes_paired;
      for (int e = 0; e < SPANS; e += 2) {
        const Half* keys = of + e * TILE_OF_HALVES;
        float* columns = scratch.columns + e * 2 * TILE_OF_FLOATS;
        four_products<true>({keys, keys + TILE_OF_HALVES}, TILE_ROW, 0, {by, by + TILE_OF_HALVES}, 0, 1,
                            {columns, columns + TILE_OF_FLOATS},
                            {columns + 2 * TILE_OF_FLOATS, columns + 3 * TILE_OF_FLOATS});
      }
    }
    for (int half = 0; half < 2; ++half)
      write_columns(scratch.columns, _mm512_set1_ps(1.0f), half, dq, b, h, start + half * SIDE, length);
  }
  write_rows(scratch.key_slopes, dk, b, h, length);
  write_rows(scratch.value_slopes, dv, b, h, length);
}

}  // namespace
