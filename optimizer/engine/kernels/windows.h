// Depthwise convolutions, and what is computed with them so that what lies between stays in a cache.

#pragma once

#include <algorithm>
#include <cstring>

#include "products.h"

namespace {

// A row is one channel, and its taps look at that channel alone.
template <int V>
void depthwise_tile(const Step &s, const float *input, int64_t row, int64_t first) {
  const float *weights = static_cast<const float *>(s.weights) + row * s.taps_count;
  vec sums[V];
  for (int v = 0; v < V; v++) sums[v] = splat(s.bias[row]);
  for (int64_t t = 0; t < s.taps_count; t++) {
    const float *x = input + first * WIDTH + s.offsets[t];
    const vec weight = splat(weights[t]);
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) sums[v] += weight * load(x + v * WIDTH);
  }
  finish<V>(s, s.output + row * s.output_stride, row, first, sums);
}

void depthwise(const Step &s, const float *input, int64_t row) {
  constexpr int V = 4;
  const int64_t vectors = s.vectors + (s.tail > 0);
  int64_t first = 0;
  for (; first + V <= vectors; first += V) depthwise_tile<V>(s, input, row, first);
  for (; first < vectors; first++) depthwise_tile<1>(s, input, row, first);
}

// What columns 0, EVERY, ... of a window see of one row of the input: pixels side by side, or every second one.
template <typename V, int STRIDE, int EVERY, int COLUMNS>
__attribute__((always_inline)) inline void columns_of(const float *in, V *values) {
  if constexpr (STRIDE == 1) {
#pragma GCC unroll 5
    for (int c = 0; c < COLUMNS; c++) values[c] = loaded(load_as<V>(in + c * EVERY));
  } else {
    constexpr int FIRST = STRIDE / EVERY;
    const V a = loaded(load_as<V>(in)), b = loaded(load_as<V>(in + LANES<V>));
    values[0] = picked<0, 2>(a, b);
    if constexpr (FIRST == 2) values[1] = picked<1, 2>(a, b);
#pragma GCC unroll 5
    for (int c = FIRST; c < COLUMNS; c++)  // one pixel further than an earlier one
      values[c] = picked<1, 1>(values[c - FIRST], all<V>(in[2 * LANES<V> + c * EVERY - 2]));
  }
}

// Adds what the columns k, k + EVERY, ... of a K x K window make of the input to R rows of sums. Each input is
// loaded once for all the rows that it belongs to, and the weights stay in registers.
template <typename V, int K, int STRIDE, int R, int EVERY, int COLUMNS>
__attribute__((always_inline)) inline void add_columns(
    const float *weights, const float *in, int64_t pitch, int k, V *sums) {
  V taps[K][COLUMNS];
#pragma GCC unroll 5
  for (int j = 0; j < K; j++)
#pragma GCC unroll 5
    for (int c = 0; c < COLUMNS; c++) taps[j][c] = all<V>(weights[j * K + k + c * EVERY]);
  in += k;
#pragma GCC unroll 32
  for (int i = 0; i < (R - 1) * STRIDE + K; i++, step_to(in, pitch)) {
    V values[COLUMNS];
    columns_of<V, STRIDE, EVERY, COLUMNS>(in, values);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
      if (i >= r * STRIDE && i < r * STRIDE + K)
#pragma GCC unroll 5
        for (int c = 0; c < COLUMNS; c++) sums[r] += taps[i - r * STRIDE][c] * values[c];
  }
}

// R rows of the outputs of a K x K window at once.
template <typename V, int K, int STRIDE, int R>
void depthwise_rows(const Step &s, const float *image, float *out, int64_t row, int64_t y) {
  const float *weights = static_cast<const float *>(s.weights) + row * K * K;
  const V low = all<V>(s.low), high = all<V>(s.high), bias = all<V>(s.bias[row]);
  const int64_t pitch = s.input_row, output_pitch = s.output_row, width = s.width;
  const float *corner = image + (y * STRIDE - s.pad_top) * pitch - s.pad_left;
  out += y * output_pitch;
  for (int64_t x = 0; x < width; x += LANES<V>) {
    V sums[R];
    for (int r = 0; r < R; r++) sums[r] = bias;
    const float *in = corner + x * STRIDE;
    if constexpr (K == 3) {
      add_columns<V, K, STRIDE, R, 1, K>(weights, in, pitch, 0, sums);
    } else if constexpr (STRIDE == 2) {
      add_columns<V, K, STRIDE, R, 2, (K + 1) / 2>(weights, in, pitch, 0, sums);
      add_columns<V, K, STRIDE, R, 2, K / 2>(weights, in, pitch, 1, sums);
    } else {
#pragma GCC unroll 5
      for (int k = 0; k < K; k++) add_columns<V, K, STRIDE, R, 1, 1>(weights, in, pitch, k, sums);
    }
    float *to = out + x;
    for (int r = 0; r < R; r++, step_to(to, output_pitch)) {
      const V value = smaller(larger(sums[r], low), high);
      if (x + LANES<V> <= width) {
        std::memcpy(to, &value, sizeof value);
      } else {
        store_first(to, value, width - x);
      }
    }
  }
}

// The same where a vector holds a whole row, of the input and of the output: a row is loaded once for a column of the
// window, and moved to the outputs that see it, with zeros for what lies beside the image.
template <typename V, int K, int STRIDE, int R>
void shifted_rows(const Step &s, const float *image, float *out, int64_t row, int64_t y) {
  const float *weights = static_cast<const float *>(s.weights) + row * K * K;
  const V low = all<V>(s.low), high = all<V>(s.high);
  const int64_t top = y * STRIDE - s.pad_top, pitch = s.input_row;
  V sums[R];
  each<R>([&](auto r) __attribute__((always_inline)) { sums[r] = all<V>(s.bias[row]); });
  for (int k = 0; k < K; k++) {
    const Places<V> places(s.offsets + k * WIDTH);
    V taps[K];
    each<K>([&](auto j) __attribute__((always_inline)) { taps[j] = all<V>(weights[j * K + k]); });
    const float *in = image + top * pitch;
    each<(R - 1) * STRIDE + K>([&](auto i) __attribute__((always_inline)) {
      if (top + i >= 0 && top + i < s.input_height) {
        const V value = moved(load_as<V>(in), places);
        each<R>([&](auto r) __attribute__((always_inline)) {
          if constexpr (i >= r * STRIDE && i < r * STRIDE + K) sums[r] += taps[i - r * STRIDE] * value;
        });
      }
      step_to(in, pitch);
    });
  }
  out += y * s.output_row;
  each<R>([&](auto r) __attribute__((always_inline)) {
    store_first(out, smaller(larger(sums[r], low), high), s.width);
    step_to(out, s.output_row);
  });
}

// Rows [from, to) of a channel's output.
template <typename V, int K, int STRIDE, int R, bool SHIFTED>
void depthwise_plane(const Step &s, const float *input, int64_t row, int64_t from, int64_t to) {
  for (int64_t n = 0; n < s.images; n++) {
    const float *image = input + n * s.input_image;
    float *out = s.output + row * s.output_stride + n * s.output_image;
    int64_t y = from;
    if constexpr (SHIFTED) {
      for (; y + R <= to; y += R) shifted_rows<V, K, STRIDE, R>(s, image, out, row, y);
      for (; y < to; y++) shifted_rows<V, K, STRIDE, 1>(s, image, out, row, y);
    } else {
      for (; y + R <= to; y += R) depthwise_rows<V, K, STRIDE, R>(s, image, out, row, y);
      for (; y < to; y++) depthwise_rows<V, K, STRIDE, 1>(s, image, out, row, y);
    }
  }
}

// Output rows at once: sevens, if they fit the height.
int64_t rows_at_once(const Step &s) { return s.height % 7 ? 4 : 7; }

template <typename V, bool SHIFTED>
void depthwise_channel(const Step &s, const float *input, int64_t row, int64_t from, int64_t to) {
  using Plane = void (*)(const Step &, const float *, int64_t, int64_t, int64_t);
  static constexpr Plane planes[2][2][2] = {  // by kernel, stride, and rows at once
      {{depthwise_plane<V, 3, 1, 4, SHIFTED>, depthwise_plane<V, 3, 1, 7, SHIFTED>},
       {depthwise_plane<V, 3, 2, 4, SHIFTED>, depthwise_plane<V, 3, 2, 7, SHIFTED>}},
      {{depthwise_plane<V, 5, 1, 4, SHIFTED>, depthwise_plane<V, 5, 1, 7, SHIFTED>},
       {depthwise_plane<V, 5, 2, 4, SHIFTED>, depthwise_plane<V, 5, 2, 7, SHIFTED>}},
  };
  planes[s.kernel == 5][s.step == 2][rows_at_once(s) == 7](s, input, row, from, to);
}

void depthwise_channel(const Step &s, const float *input, int64_t row, int64_t from, int64_t to) {
  if (s.kind == DEPTHWISE) return depthwise(s, input, row);
  if (s.kind == DEPTHWISE_SHIFTED) {
    if (std::max(s.input_width, s.width) <= LANES<narrow>) return depthwise_channel<narrow, true>(s, input, row, from, to);
    return depthwise_channel<vec, true>(s, input, row, from, to);
  }
  if (s.width <= WIDTH / 2) return depthwise_channel<narrow, false>(s, input, row, from, to);
  depthwise_channel<vec, false>(s, input, row, from, to);
}

// Rows of an image that follow each other without gaps, to where they have them; the gaps are zeros.
void spread(const Step &s, const float *compact, float *plane) {
  for (int64_t n = 0; n < s.images; n++)
    for (int64_t y = 0; y < s.input_height; y++) {
      const float *in = compact + (n * s.input_height + y) * s.input_width;
      float *out = plane + n * s.input_image + y * s.input_row;
      for (int64_t x = 0; x < s.input_width; x += WIDTH) {
        const int64_t left = s.input_width - x;
        if (left >= WIDTH) {
          store(out + x, load(in + x));
        } else {
          store_first(out + x, load(in + x), left);
        }
      }
    }
}

constexpr int64_t SCRATCH = 32768;  // floats that stay in a second-level cache beside other things
constexpr int64_t NEAR = 5120;      // and in a first-level one

// The channel that the i-th row of what a producer computes is.
int64_t channel_of(const Step &producer, int64_t i) { return producer.kind == DENSE ? i : producer.order[i]; }

// Channels whose input is computed for them, whole planes of a few at a time, and read while in the cache.
void fused_planes(const Step &s, int64_t begin, int64_t end) {
  const Step &producer = *s.producer;
  const int64_t plane = producer.output_stride, pixels = producer.vectors * WIDTH;
  const int64_t gapped = s.compact + s.border;
  const bool gaps = !s.compact && s.kind != DEPTHWISE_SHIFTED;
  const int64_t together = std::max<int64_t>(NEAR / (plane + (s.compact ? gapped : 0)) / ROWS, 1) * ROWS;
  float *scratch = scratch_memory<PLANES>(together * (plane + gapped) + 4 * s.border + 4 * WIDTH) + s.border;
  float *padded = scratch + together * plane + s.border + 2 * WIDTH;
  std::fill_n(scratch - s.border, s.border, 0.0f);
  if (s.compact) std::fill_n(padded - s.border, s.border + together * gapped, 0.0f);
  for (int64_t first = begin; first < end; first += together) {
    const int64_t last = std::min(end, first + together);
    for (int64_t i = 0; i < last - first && gaps; i++)
      std::fill_n(scratch + i * plane + pixels, plane - pixels, 0.0f);
    tiles(producer, first, last, 0, producer.vectors, Target{scratch, first, plane});
    for (int64_t i = 0; i < last - first && s.compact; i++) spread(s, scratch + i * plane, padded + i * gapped);
    for (int64_t i = 0; i < last - first; i++) {
      const float *input = s.compact ? padded + i * gapped : scratch + i * plane;
      depthwise_channel(s, input, channel_of(producer, first + i), 0, s.height);
    }
  }
}

// A plane of the scratch memory for a producer that works by bands: what `at_once` rows of outputs look at.
int64_t rolling_plane(const Step &s, int64_t at_once) {
  const int64_t longest = ((at_once - 1) * s.step + s.kernel) * s.input_row + 2 * WIDTH;
  return (longest + 2 * s.border + 2 * WIDTH + 15) / 16 * 16;
}

int64_t rolling_channels(const Step &s, int64_t plane) {
  return s.producer->kind == DENSE ? ROWS : std::clamp<int64_t>(NEAR / plane / 2 * 2, 2, ROWS);
}

// Rows [from, to) of the outputs of channels [begin, end). What the producer computes goes on a few rows at a
// time, in the first-level cache.
void fused_band(const Step &s, int64_t begin, int64_t end, int64_t from, int64_t to, float *scratch) {
  const Step &producer = *s.producer;
  const int64_t at_once = rows_at_once(s), plane = rolling_plane(s, at_once), together = rolling_channels(s, plane);
  for (int64_t first = begin; first < end; first += together) {
    const int64_t last = std::min(end, first + together);
    for (int64_t i = 0; i < last - first; i++) std::fill_n(scratch + i * plane - s.border, s.border, 0.0f);
    int64_t done = 0, base = 0;  // vectors of a plane that are there: [base, done)
    for (int64_t y = from; y < to; y += at_once) {
      const int64_t stop = std::min(to, y + at_once);
      const int64_t top = std::max<int64_t>(y * s.step - s.pad_top, 0) * s.input_row / WIDTH;
      const int64_t lowest = std::min((stop - 1) * s.step - s.pad_top + s.kernel, s.input_height);
      const int64_t needed = std::min(
          ((lowest - 1) * s.input_row + s.input_width + WIDTH - 1) / WIDTH, producer.vectors);
      if (y == from) done = base = top;
      const int64_t again = std::max<int64_t>(done - top, 0) * WIDTH, moved = (top - base) * WIDTH;
      for (int64_t i = 0; i < last - first && moved; i++)
        std::memmove(scratch + i * plane, scratch + i * plane + moved, again * sizeof(float));
      base = top;
      float *shifted = scratch - base * WIDTH;
      tiles(producer, first, last, done, needed - done, Target{shifted, first, plane});
      done = needed;
      const int64_t behind = (lowest == s.input_height ? s.border : 0) + WIDTH;  // padding that is read
      for (int64_t i = 0; i < last - first; i++) {
        std::fill_n(shifted + i * plane + done * WIDTH, behind, 0.0f);
        depthwise_channel(s, shifted + i * plane, channel_of(producer, first + i), y, stop);
      }
    }
  }
}

// For large planes of one image. What the producer reads for a band of rows stays in the second-level cache for
// all channels. The rows that two bands share are computed twice.
void fused_bands(const Step &s, int64_t begin, int64_t end) {
  const int64_t at_once = rows_at_once(s), fitting = (SCRATCH / (ROWS * s.input_row) - s.kernel) / s.step + 1;
  const int64_t band = std::max<int64_t>(fitting / at_once, 1) * at_once, plane = rolling_plane(s, at_once);
  float *scratch = scratch_memory<PLANES>(rolling_channels(s, plane) * plane) + s.border;
  for (int64_t from = 0; from < s.height; from += band)
    fused_band(s, begin, end, from, std::min(s.height, from + band), scratch);
}

// A band of a depthwise convolution's outputs, all channels, and what the consumer makes of it: the band never
// leaves the second-level cache.
void through_band(const Step &s, int64_t number) {
  const int64_t from = number * s.band, to = std::min(s.height, from + s.band);
  Step inner = s, outer = *s.consumer;
  inner.height = s.band;  // rows at once divide a band
  const int64_t plane = rolling_plane(inner, rows_at_once(inner)), before = from * s.output_row;
  const int64_t rolling = rolling_channels(inner, plane) * plane + 2 * s.border;
  float *scratch = scratch_memory<PLANES>(rolling + s.rows * outer.input_stride + 4 * WIDTH);
  float *band = scratch + (rolling + 15) / 16 * 16;
  inner.output = band - before;
  inner.output_stride = outer.input_stride;
  fused_band(inner, 0, s.rows, from, to, scratch + s.border);
  outer.input = inner.output;
  const int64_t first = before / WIDTH, behind = to == s.height ? outer.vectors : to * s.output_row / WIDTH;
  area(outer, 0, outer.rows, first, behind - first);
}

int64_t bands(const Step &s) { return (s.height + s.band - 1) / s.band; }

// Channels [begin, end) of a depthwise convolution.
void channels(const Step &s, int64_t begin, int64_t end) {
  if (s.producer) {
    const bool large = s.producer->output_stride > NEAR / ROWS;
    const bool banded = large && s.kind == DEPTHWISE_ROWS && !s.compact && s.images == 1;
    return banded ? fused_bands(s, begin, end) : fused_planes(s, begin, end);
  }
  float *padded = s.compact ? scratch_memory<PLANES>(s.compact + 2 * s.border) + s.border : nullptr;
  if (padded) std::fill_n(padded - s.border, s.border + s.compact, 0.0f);
  for (int64_t row = begin; row < end; row++) {
    const float *input = s.input + row * s.input_stride;
    if (padded) spread(s, input, padded);
    depthwise_channel(s, padded ? padded : input, row, 0, s.height);
  }
}

}  // namespace
