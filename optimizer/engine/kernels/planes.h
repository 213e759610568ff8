// What moves, adds and sums up planes.

#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "step.h"

namespace {

void copy(const Step &s, int64_t begin, int64_t end) {
  for (int64_t c = begin; c < end; c++)
    for (int64_t n = 0; n < s.images; n++)
      for (int64_t y = 0; y < s.height; y++) {
        const float *in = s.input + c * s.input_stride + n * s.input_image + y * s.input_row;
        float *out = s.output + c * s.output_stride + n * s.output_image + y * s.output_row;
        if (s.input_column == 1 && s.output_column == 1) {
          std::memcpy(out, in, s.width * sizeof(float));
        } else {
          for (int64_t x = 0; x < s.width; x++) out[x * s.output_column] = in[x * s.input_column];
        }
      }
}

void add(const Step &s, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; row++)
    for (int64_t v = 0; v < s.vectors + (s.tail > 0); v++) {
      vec sum = load(s.input + row * s.input_stride + v * WIDTH);
      finish<1>(s, s.output + row * s.output_stride, row, v, &sum);
    }
}

// The largest of kernel x kernel inputs, those outside the image left out: down the columns, then along.
void max_pool(const Step &s, int64_t begin, int64_t end) {
  const float least = -std::numeric_limits<float>::infinity();
  std::vector<float> column(s.input_width + 2 * s.kernel + WIDTH, least);
  float *largest = column.data() + s.kernel;
  for (int64_t c = begin; c < end; c++)
    for (int64_t n = 0; n < s.images; n++)
      for (int64_t y = 0; y < s.height; y++) {
        const float *image = s.input + c * s.input_stride + n * s.input_image;
        const int64_t top = y * s.step - s.pad_top;
        std::fill_n(largest, s.input_width, least);
        for (int64_t row = std::max<int64_t>(top, 0); row < std::min(top + s.kernel, s.input_height); row++) {
          const float *in = image + row * s.input_row;
          for (int64_t x = 0; x < s.input_width; x++) largest[x] = std::max(largest[x], in[x]);
        }
        float *out = s.output + c * s.output_stride + n * s.output_image + y * s.output_row;
        int64_t x = 0;
        if (s.step == 2)
          for (; x + WIDTH <= s.width; x += WIDTH) {
            const float *in = largest + 2 * x - s.pad_left;
            vec most = every_second<vec>(in);
            for (int64_t k = 1; k < s.kernel; k++) most = larger(most, every_second<vec>(in + k));
            store(out + x, smaller(larger(most, splat(s.low)), splat(s.high)));
          }
        for (; x < s.width; x++) {
          const float *in = largest + x * s.step - s.pad_left;
          float most = in[0];
          for (int64_t k = 1; k < s.kernel; k++) most = std::max(most, in[k]);
          out[x] = std::min(std::max(most, s.low), s.high);
        }
      }
}

// Gaps hold zeros, so an image is summed in one go.
void mean(const Step &s, int64_t begin, int64_t end) {
  const int64_t count = s.input_height * s.input_row;
  for (int64_t c = begin; c < end; c++)
    for (int64_t n = 0; n < s.images; n++) {
      const float *in = s.input + c * s.input_stride + n * s.input_image;
      vec sums{};
      int64_t i = 0;
      for (; i + WIDTH <= count; i += WIDTH) sums += load(in + i);
      float sum = 0;
      for (int k = 0; k < WIDTH; k++) sum += sums[k];
      for (; i < count; i++) sum += in[i];
      s.output[c * s.output_stride + n * s.output_image] = sum / (s.input_height * s.input_width);
    }
}

// Every step-th pixel of a row; `more`: what lies behind it in memory may be read.
void thin_out(const float *in, float *out, int64_t step, int64_t count, bool more) {
  int64_t x = 0;
  if (step == 2) {
    for (; x + WIDTH < count; x += WIDTH) store(out + x, every_second<vec>(in + 2 * x));
    if (more) return store_first(out + x, every_second<vec>(in + 2 * x), count - x);
  }
  for (; x < count; x++) out[x] = in[step * x];
}

// The phases of each channel, one after another.
void phases(const Step &s, int64_t begin, int64_t end) {
  for (int64_t c = begin; c < end; c++)
    for (int64_t k = 0; k < s.taps_count; k++) {
      const int64_t down = s.offsets[2 * k], right = s.offsets[2 * k + 1];
      const int64_t rows = std::min(s.height, (s.input_height - down + s.step - 1) / s.step);
      const int64_t columns = std::min(s.width, (s.input_width - right + s.step - 1) / s.step);
      const float *in = s.input + c * s.input_stride + down * s.input_row + right;
      float *out = s.output + (c * s.taps_count + k) * s.output_stride;
      for (int64_t n = 0; n < s.images; n++)
        for (int64_t y = 0; y < rows; y++)
          thin_out(in + n * s.input_image + y * s.step * s.input_row,
                   out + n * s.output_image + y * s.output_row, s.step, columns, s.border);
    }
}

}  // namespace
