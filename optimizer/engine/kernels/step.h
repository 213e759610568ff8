// A step of a network, as Python lays it out, and how what it computes is written.

#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "vectors.h"

namespace {

struct Tap {
  float weight;
  int32_t offset;
};

// A tap that both rows of a pair have.
struct PairTap {
  float weights[2];
  int32_t offset;
};

// Taps of a row for a single pixel: four at a time, filled up with weights of 0.
struct Taps {
  float weights[4];
  int32_t offsets[4];
};

}  // namespace

extern "C" {

enum Kind : int64_t {
  SPARSE, SPARSE_PAIRS, SPARSE_BLOCKS, DENSE, SPARSE_VECTOR, DENSE_VECTOR, DEPTHWISE, DEPTHWISE_ROWS,
  DEPTHWISE_SHIFTED, COPY, ADD, MAX_POOL, MEAN, PHASES
};

// One operation. optimizer/engine/kernels/__init__.py declares the same fields in the same order.
struct Step {
  int64_t kind;
  const Step *producer;  // depthwise: what computes its input, a few channels at a time, or null
  const Step *consumer;  // depthwise: what alone reads its output, a few rows at a time, or null
  const float *input;
  const float *other;   // what is added to the output, or null
  float *output;
  const float *bias;
  const void *weights;     // dense: [rows / ROWS][taps][ROWS]; depthwise: [rows][taps]; pairs: PairTap
  const void *taps;        // sparse: Tap or, for a vector, Taps that survive, row after row; blocks: block after block
  const int32_t *starts;   // sparse: where those of the i-th row (of each block) begin, and where the last end
  const int32_t *order;    // sparse: the rows, those with the most taps first; blocks: for each block
  const int32_t *columns;  // sparse: where each block's columns begin, and where the last end;
                           // pairs: where each pair's common taps begin, and where the last end
  const int32_t *offsets;  // dense and depthwise: offset of each tap (shifted: layout.shifts); sparse: of each column;
                           // phases: the first row and column of each
  const int32_t *mask;     // for each pixel all ones, or zero in a gap; null where there are no gaps
  int64_t rows, taps_count, blocks, gathered, vectors, tile;
  int64_t tail;        // pixels behind the last vector, 0 to 4
  int64_t rows_first;  // all pixels of a few rows, then the next: for weights that are larger than the inputs
  int64_t input_stride, output_stride;
  float low, high;
  // Windows and copies: output[c][n][y][x], up to the counts.
  int64_t images, height, width;                              // of the output, as far as it is written
  int64_t input_image, input_row, input_column;               // steps in the input
  int64_t output_image, output_row, output_column;            // steps in the output
  int64_t kernel, step, pad_top, pad_left, input_height, input_width;
  int64_t border;  // depthwise: floats of zeros before a plane of the input; phases: floats behind it, if any
  int64_t compact; // depthwise: the input has no gaps; floats of a plane that has
  int64_t band;    // depthwise: rows of the output that the consumer reads at once, whole vectors of them
};

}  // extern "C"

namespace {

// Where rows of a step go: to its output, or row `begin` and those after it to planes of a scratch memory.
struct Target {
  float *scratch;
  int64_t begin, plane;
  bool far_input = false, far_output = false;  // no cache nearby holds them: their lines are asked for ahead

  float *of(const Step &s, int64_t i, int64_t row) const {
    return scratch ? scratch + (i - begin) * plane : s.output + row * s.output_stride;
  }
};

// Scratch memory of this thread for one use, aligned to a cache line.
enum Use { PLANES, SUMS, COLUMNS };
template <Use>
float *scratch_memory(size_t floats) {
  thread_local std::vector<float> memory;
  if (memory.size() < floats + 16) memory.resize(floats + 16);
  float *begin = memory.data();
  return begin + (64 - reinterpret_cast<uintptr_t>(begin) % 64) % 64 / sizeof(float);
}

// Adds, clips, and puts zeros into the gaps.
template <int V>
__attribute__((always_inline)) inline void finish(const Step &s, float *out, int64_t row, int64_t first, vec *sums) {
  out += first * WIDTH;
  const float *other = s.other ? s.other + row * s.output_stride + first * WIDTH : nullptr;
  const vec low = splat(s.low), high = splat(s.high);
#pragma GCC unroll 8
  for (int v = 0; v < V; v++) {
    if (other) sums[v] += load(other + v * WIDTH);
    sums[v] = smaller(larger(sums[v], low), high);
    if (s.mask) {
      lanes kept;
      std::memcpy(&kept, s.mask + (first + v) * WIDTH, sizeof kept);
      sums[v] = reinterpret_cast<vec>(reinterpret_cast<lanes>(sums[v]) & kept);
    }
    store(out + v * WIDTH, sums[v]);
  }
}

// The few pixels behind the last vector.
inline void finish_tail(const Step &s, float *out, int64_t row, const float *sums) {
  const int64_t first = s.vectors * WIDTH;
  const float *other = s.other ? s.other + row * s.output_stride + first : nullptr;
  for (int64_t p = 0; p < s.tail; p++) {
    const float sum = sums[p] + (other ? other[p] : 0);
    out[first + p] = std::min(std::max(sum, s.low), s.high);
  }
}

}  // namespace
