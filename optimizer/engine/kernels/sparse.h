// Products with the weights that survive: rows of taps over tiles of pixels, and dot products over a single one.

#pragma once

#include <algorithm>

#include "step.h"

namespace {

constexpr int64_t FAR = 1 << 17;   // floats, of which little is left in a cache nearby when they are read again
constexpr int64_t AHEAD = 12;      // rows, for which memory has time to answer
constexpr int64_t OFTEN = 12;      // taps of a column, for which it pays to ask for its inputs ahead
constexpr int64_t GROUP = 128;     // rows that every block of columns orders for itself

// What a row sums up: V vectors of pixels and, in the last tile, the few pixels behind them.
template <int V, bool LAST>
struct Sums {
  static constexpr int64_t FLOATS = V * WIDTH + (LAST ? 16 : 0);

  vec vectors[V];
  four behind;

  __attribute__((always_inline)) void begin(float bias) {
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) vectors[v] = splat(bias);
    behind = all<four>(bias);
  }

  // A surviving tap: a broadcast and V multiply-adds.
  __attribute__((always_inline)) void add(const Tap &tap, const float *input) {
    const float *x = address(input + tap.offset);
    const vec weight = splat(tap.weight);
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) vectors[v] += weight * load(x + v * WIDTH);
    if constexpr (LAST) behind += tap.weight * load_as<four>(x + V * WIDTH);
  }

  __attribute__((always_inline)) void leave(float *waiting) const {
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) store(waiting + v * WIDTH, vectors[v]);
    if constexpr (LAST) std::memcpy(waiting + V * WIDTH, &behind, sizeof behind);
  }

  __attribute__((always_inline)) void take_up(const float *waiting) {
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) vectors[v] = load(waiting + v * WIDTH);
    if constexpr (LAST) behind = load_as<four>(waiting + V * WIDTH);
  }
};

// Asks for what a row's end will read and write. Each row is a stream of its own, and no processor foresees hundreds.
template <int V>
__attribute__((always_inline)) inline void ask_for_row(const Step &s, int64_t row, int64_t first) {
  const int64_t at = row * s.output_stride + first * WIDTH;
#pragma GCC unroll 8
  for (int v = 0; v < V; v++) {
    if (s.other) __builtin_prefetch(s.other + at + v * WIDTH);
    __builtin_prefetch(s.output + at + v * WIDTH, 1);
  }
}

// The columns that are multiplied next: the next block's, or in the next tile those of the first. Each row that is
// done meanwhile asks for some of their inputs.
template <int V>
struct Next {
  const float *input = nullptr;
  const int32_t *offset = nullptr, *end = nullptr;
  int64_t a_row = 0;

  void begin(const Step &s, int64_t block, int64_t rows, const float *tile) {
    const bool again = block + 1 == s.blocks;
    const int32_t *columns = again ? s.columns : s.columns + block + 1;
    input = again ? tile + V * WIDTH : tile;
    offset = s.offsets + columns[0];
    end = s.offsets + columns[1];
    a_row = (end - offset + rows - 1) / rows;
  }

  __attribute__((always_inline)) void ask_for_some() {
    for (const int32_t *stop = std::min(offset + a_row, end); offset < stop; offset++)
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) __builtin_prefetch(input + *offset + v * WIDTH, 0, 2);
  }
};

// The inputs of a block's columns, copied one behind the other. Taps of a window would read most of them across the
// end of a cache line, again for every row.
template <int V, bool LAST>
const float *gathered(const Step &s, int64_t block, const float *input) {
  const int64_t pitch = s.tile * WIDTH + (s.tail ? 16 : 0);
  const int32_t *begin = s.offsets + s.columns[block], *end = s.offsets + s.columns[block + 1];
  float *copies = scratch_memory<COLUMNS>((end - begin) * pitch), *to = copies;
  for (const int32_t *offset = begin; offset < end; offset++, to += pitch) {
    for (int v = 0; v < V; v++) store(to + v * WIDTH, load(input + *offset + v * WIDTH));
    if constexpr (LAST) std::memcpy(to + V * WIDTH, input + *offset + V * WIDTH, sizeof(four));
  }
  return copies;
}

// A row, the i-th in its order, is summed up.
template <int V, bool LAST>
__attribute__((always_inline)) inline void finish_row(
    const Step &s, const Target &target, int64_t i, int64_t row, int64_t first, Sums<V, LAST> &sums) {
  float *out = target.of(s, i, row);
  finish<V>(s, out, row, first, sums.vectors);
  if constexpr (LAST) {
    float behind[4];
    std::memcpy(behind, &sums.behind, sizeof behind);
    finish_tail(s, out, row, behind);
  }
}

// V vectors of pixels, rows [begin, end) in their order.
template <int V, bool LAST>
void sparse_tile(const Step &s, int64_t begin, int64_t end, int64_t first, const Target &target) {
  const float *input = s.input + first * WIDTH;
  const auto take = [&](int64_t i) __attribute__((always_inline)) {
    const Tap *taps = static_cast<const Tap *>(s.taps);
    const int64_t row = s.order[i];
    Sums<V, LAST> sums;
    sums.begin(s.bias[row]);
    for (const Tap *tap = taps + s.starts[i], *stop = taps + s.starts[i + 1]; tap < stop; tap++) sums.add(*tap, input);
    finish_row(s, target, i, row, first, sums);
  };
  if (!target.far_input && !target.far_output) {
    for (int64_t i = begin; i < end; i++) take(i);
    return;
  }
  Next<V> next;
  if (target.far_input) next.begin(s, 0, end - begin, input);
  for (int64_t i = begin; i < end; i++) {
    next.ask_for_some();
    if (target.far_output) ask_for_row<V>(s, s.order[std::min(i + AHEAD, end - 1)], first);
    take(i);
  }
}

// Two rows at once, those of a pair: what both have is loaded once for the two.
template <int V, bool LAST>
void pairs_tile(const Step &s, int64_t begin, int64_t end, int64_t first, const Target &target) {
  const float *input = s.input + first * WIDTH;
  const Tap *taps = static_cast<const Tap *>(s.taps);
  const PairTap *common = static_cast<const PairTap *>(s.weights);
  for (int64_t i = begin; i < end; i += 2) {
    Sums<V, LAST> sums[2];
    for (int r = 0; r < 2; r++) sums[r].begin(i + r < s.rows ? s.bias[s.order[i + r]] : 0);
    for (const PairTap *tap = common + s.columns[i / 2], *stop = common + s.columns[i / 2 + 1]; tap < stop; tap++) {
      const float *x = address(input + tap->offset);
      const vec weights[2] = {splat(tap->weights[0]), splat(tap->weights[1])};
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) {
        const vec value = loaded(load(x + v * WIDTH));
        sums[0].vectors[v] += weights[0] * value;
        sums[1].vectors[v] += weights[1] * value;
      }
      if constexpr (LAST) {
        const four value = load_as<four>(x + V * WIDTH);
        sums[0].behind += tap->weights[0] * value;
        sums[1].behind += tap->weights[1] * value;
      }
    }
#pragma GCC unroll 2
    for (int r = 0; r < 2; r++) {
      if (i + r >= s.rows) break;
      for (const Tap *tap = taps + s.starts[i + r], *stop = taps + s.starts[i + r + 1]; tap < stop; tap++)
        sums[r].add(*tap, input);
      finish_row(s, target, i + r, s.order[i + r], first, sums[r]);
    }
  }
}

// Rows [begin, end), a block of columns after the other: what the tile reads of a block's inputs stays in the
// first-level cache until every row has taken its taps from there. A row's sums wait meanwhile. Rows differ in order
// from block to block, but only within groups of GROUP.
template <int V, bool LAST>
void blocks_tile(const Step &s, int64_t begin, int64_t end, int64_t first, const Target &target) {
  constexpr int64_t FLOATS = Sums<V, LAST>::FLOATS;
  const float *tile = s.input + first * WIDTH;
  const Tap *taps = static_cast<const Tap *>(s.taps);
  float *waiting = scratch_memory<SUMS>(s.rows * FLOATS);
  for (int64_t block = 0; block < s.blocks; block++) {
    const bool last = block + 1 == s.blocks;
    const int32_t *order = s.order + block * s.rows, *starts = s.starts + block * s.rows;
    const float *input = s.gathered ? gathered<V, LAST>(s, block, tile) : tile;
    Next<V> next;
    if (target.far_input) next.begin(s, block, end - begin, tile);
    for (int64_t i = begin; i < end; i++) {
      next.ask_for_some();
      if (target.far_output && last) ask_for_row<V>(s, order[std::min(i + AHEAD, end - 1)], first);
      const int64_t row = order[i];
      Sums<V, LAST> sums;
      if (block == 0) {
        sums.begin(s.bias[row]);
      } else {
        sums.take_up(waiting + row * FLOATS);
      }
      for (const Tap *tap = taps + starts[i], *stop = taps + starts[i + 1]; tap < stop; tap++) sums.add(*tap, input);
      if (last) {
        finish_row(s, target, i, row, first, sums);
      } else {
        sums.leave(waiting + row * FLOATS);
      }
    }
  }
}

// One pixel: a row is a dot product. Two chains of sums, so that an addition need not wait for the one before.
void sparse_vector(const Step &s, int64_t begin, int64_t end) {
  const auto product = [&](const Taps &taps) {
    const int32_t *at = taps.offsets;
    const four inputs = {s.input[at[0]], s.input[at[1]], s.input[at[2]], s.input[at[3]]};
    four weights;
    std::memcpy(&weights, taps.weights, sizeof weights);
    return weights * inputs;
  };
  for (int64_t i = begin; i < end; i++) {
    const int64_t row = s.order[i];
    const Taps *taps = static_cast<const Taps *>(s.taps) + s.starts[i];
    const Taps *stop = static_cast<const Taps *>(s.taps) + s.starts[i + 1];
    four even{}, odd{};
    for (; taps + 1 < stop; taps += 2) {
      even += product(taps[0]);
      odd += product(taps[1]);
    }
    if (taps < stop) even += product(*taps);
    even += odd;
    const float sum = (even[0] + even[1]) + (even[2] + even[3]) + s.bias[row] + (s.other ? s.other[row] : 0);
    s.output[row] = std::min(std::max(sum, s.low), s.high);
  }
}

}  // namespace
