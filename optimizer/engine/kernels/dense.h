// Products with every weight: register tiles of several rows, whose inputs are loaded once for all of them.

#pragma once

#include <algorithm>

#include "step.h"

namespace {

// The register tile of several rows: rows x vectors of accumulators, that many inputs, and a weight.
#if WIDTH == 8
constexpr int ROWS = 4;  // AVX2 has 16 registers, AVX-512 and NEON 32
#else
constexpr int ROWS = 8;
#endif
constexpr int TILE = 3;
constexpr int PIECE = ROWS < WIDTH ? ROWS : WIDTH;
typedef float column __attribute__((vector_size(PIECE * 4), aligned(4)));  // of weights: no wider than a register

// ROWS rows at once: each input is loaded once for all of them.
template <int V>
void dense_tile(const Step &s, int64_t block, int64_t first, const Target &target) {
  const float *input = s.input + first * WIDTH;
  const float *weights = static_cast<const float *>(s.weights) + block * ROWS * s.taps_count;
  vec sums[ROWS][V];
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < V; v++) sums[r][v] = splat(s.bias[block * ROWS + r]);
  for (int64_t t = 0; t < s.taps_count; t++) {
    const float *x = input + s.offsets[t];
    vec values[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) values[v] = load(x + v * WIDTH);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
      const vec weight = splat(weights[t * ROWS + r]);
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) sums[r][v] += weight * values[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++) {
    const int64_t row = block * ROWS + r;
    if (row < s.rows) finish<V>(s, target.of(s, row, row), row, first, sums[r]);
  }
}

// The few pixels behind the last vector, for ROWS rows side by side. CHAINS sums a pixel, so that an addition
// need not wait for the one before.
template <int PIXELS, int CHAINS>
void dense_tail(const Step &s, int64_t block, const Target &target) {
  const float *input = s.input + s.vectors * WIDTH;
  const float *weights = static_cast<const float *>(s.weights) + block * ROWS * s.taps_count;
  constexpr int PIECES = ROWS / PIECE;
  column sums[CHAINS][PIXELS][PIECES] = {};
  const auto add = [&](int64_t t, int chain) {
    for (int i = 0; i < PIECES; i++) {
      const column weight = *reinterpret_cast<const column *>(weights + t * ROWS + i * PIECE);
      for (int p = 0; p < PIXELS; p++) sums[chain][p][i] += weight * input[s.offsets[t] + p];
    }
  };
  int64_t t = 0;
  for (; t + CHAINS <= s.taps_count; t += CHAINS)
    for (int chain = 0; chain < CHAINS; chain++) add(t + chain, chain);
  for (; t < s.taps_count; t++) add(t, 0);
  for (int chain = 1; chain < CHAINS; chain++)
    for (int p = 0; p < PIXELS; p++)
      for (int i = 0; i < PIECES; i++) sums[0][p][i] += sums[chain][p][i];
  for (int r = 0; r < ROWS && block * ROWS + r < s.rows; r++) {
    const int64_t row = block * ROWS + r;
    float last[PIXELS];
    for (int p = 0; p < PIXELS; p++) last[p] = sums[0][p][r / PIECE][r % PIECE] + s.bias[row];
    finish_tail(s, target.of(s, row, row), row, last);
  }
}

void dense_tail(const Step &s, int64_t block, const Target &target) {
  switch (s.tail) {
    case 1: return dense_tail<1, 4>(s, block, target);
    case 2: return dense_tail<2, 2>(s, block, target);
    case 3: return dense_tail<3, 2>(s, block, target);
    default: return dense_tail<4, 1>(s, block, target);
  }
}

// One input, every weight: a block of rows side by side, as wide as the dense path's tile is tall.
void dense_vector(const Step &s, int64_t begin, int64_t end) {
  constexpr int BLOCK = 4 * WIDTH;
  for (int64_t first = begin; first < end; first += BLOCK) {
    const float *weights = static_cast<const float *>(s.weights) + first * s.taps_count;
    vec sums[4] = {};
    for (int64_t t = 0; t < s.taps_count; t++, weights += BLOCK) {
      const vec value = splat(s.input[s.offsets[t]]);
#pragma GCC unroll 4
      for (int k = 0; k < 4; k++) sums[k] += value * load(weights + k * WIDTH);
    }
    float results[BLOCK];
    std::memcpy(results, sums, sizeof results);
    for (int64_t row = first; row < std::min(end, first + BLOCK); row++) {
      const float sum = results[row - first] + s.bias[row] + (s.other ? s.other[row] : 0);
      s.output[row] = std::min(std::max(sum, s.low), s.high);
    }
  }
}

}  // namespace
