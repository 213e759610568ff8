// The sparse engine's kernels: a network as a list of steps over planes of pixels.
//
// Activations are channel-major: channel c of a value begins at data + c * stride, and its pixels lie in rows
// one after another, with a gap of zeros between two rows that serves as the padding of both. A tap of a
// convolution is then one number, how far its input lies from its output, whatever the kernel's size:
//
//     out[row][p] = bias[row] + sum over taps of weight * in[offset + p]
//
// A row that keeps k of its weights costs k multiplications a pixel, and nothing is transposed or unrolled.
// The same sum over every tap, with the offsets shared by all rows, is the dense path.
//
// Compiled once for each instruction set (WIDTH floats a vector); which one runs is decided at run time.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <limits>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#ifndef WIDTH
#define WIDTH 4
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

typedef float vec __attribute__((vector_size(WIDTH * 4)));
typedef int32_t lanes __attribute__((vector_size(WIDTH * 4)));
typedef float unaligned __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));
typedef float four __attribute__((vector_size(16)));
#if WIDTH == 16
typedef float narrow __attribute__((vector_size(32)));  // rows of 8 pixels or fewer need no wider one
#else
typedef vec narrow;
#endif

// The register tile of several rows: rows x vectors of accumulators, that many inputs, and a weight.
#if WIDTH == 8
constexpr int ROWS = 4;  // AVX2 has 16 registers, AVX-512 and NEON 32
#else
constexpr int ROWS = 8;
#endif
constexpr int TILE = 3;
constexpr int PIECE = ROWS < WIDTH ? ROWS : WIDTH;
typedef float column __attribute__((vector_size(PIECE * 4), aligned(4)));  // of weights: no wider than a register

inline vec load(const float *p) { return *reinterpret_cast<const unaligned *>(p); }
inline void store(float *p, vec value) { *reinterpret_cast<unaligned *>(p) = value; }
template <typename V>
inline V load_as(const float *p) {
  V value;
  std::memcpy(&value, p, sizeof value);
  return value;
}
template <typename V>
inline V all(float value) { return value - V{}; }  // unlike value + V{}, which is no -0 where value is, no addition
inline vec splat(float value) { return all<vec>(value); }
template <typename V>
inline V larger(V a, V b) { return a > b ? a : b; }
template <typename V>
inline V smaller(V a, V b) { return a < b ? a : b; }

// The first `count` lanes; what lies behind them in memory is neither read nor written.
template <typename V>
inline void store_first(float *p, V value, int64_t count) {
#if WIDTH == 16
  __m512 whole;
  if constexpr (sizeof value == sizeof whole) {
    whole = reinterpret_cast<__m512>(value);
  } else {
    whole = _mm512_castps256_ps512(reinterpret_cast<__m256>(value));
  }
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), whole);
#elif WIDTH == 8
  lanes place;
  for (int k = 0; k < WIDTH; k++) place[k] = k;
  _mm256_maskstore_ps(p, reinterpret_cast<__m256i>(place < static_cast<int32_t>(count)), value);
#else
  std::memcpy(p, &value, count * sizeof(float));
#endif
}

// A pointer that goes from row to row, as one register: the compiler would keep an address for each row.
template <typename T>
__attribute__((always_inline)) inline void step_to(T *&p, int64_t floats) {
  p += floats;
  asm("" : "+r"(p));
}

// An address in one register: from one that is the sum of two, a multiply-add and its load are two instructions to
// the processor, not one.
template <typename T>
__attribute__((always_inline)) inline T *address(T *p) {
  asm("" : "+r"(p));
  return p;
}

// A value that is used several times, loaded once: the compiler would load it with each use, and most of these
// loads cross the end of a cache line.
template <typename V>
__attribute__((always_inline)) inline V loaded(V value) {
#if defined(__x86_64__)
  asm("" : "+v"(value));
#elif defined(__aarch64__)
  asm("" : "+w"(value));
#endif
  return value;
}

template <typename V>
constexpr int LANES = sizeof(V) / sizeof(float);

// Every STEP-th of the two vectors' floats from the FIRST on, as many as one vector has.
template <int FIRST, int STEP, typename V, int... K>
inline V picked(V a, V b, std::integer_sequence<int, K...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (FIRST + STEP * K)...);
#else
  return __builtin_shuffle(a, b, decltype(a < b){(FIRST + STEP * K)...});
#endif
}
template <int FIRST, int STEP, typename V>
inline V picked(V a, V b) {
  return picked<FIRST, STEP>(a, b, std::make_integer_sequence<int, LANES<V>>());
}

// The first, third, ... of twice as many floats as a vector has.
template <typename V>
inline V every_second(const float *p) {
  return picked<0, 2>(load_as<V>(p), load_as<V>(p + LANES<V>));
}

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
  SPARSE, SPARSE_PAIRS, SPARSE_BLOCKS, DENSE, SPARSE_VECTOR, DENSE_VECTOR, DEPTHWISE, DEPTHWISE_ROWS, COPY, ADD,
  MAX_POOL, MEAN, PHASES
};

// One operation. optimizer/kernels/__init__.py declares the same fields in the same order.
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
  const int32_t *offsets;  // dense and depthwise: offset of each tap; sparse: of each column;
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

constexpr int64_t FAR = 1 << 17;   // floats that a second-level cache does not hold
constexpr int64_t AHEAD = 12;      // rows, for which memory has time to answer
constexpr int64_t OFTEN = 12;      // taps of a column, for which it pays to ask for its inputs ahead
constexpr int64_t GROUP = 128;      // rows that every block of columns orders for itself

// A product with a matrix over vectors of pixels.
bool in_tiles(const Step &s) { return s.kind <= DENSE; }
bool reads_columns(const Step &s) { return s.kind == SPARSE || s.kind == SPARSE_BLOCKS; }

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

// Rows [from, to) of a channel's output.
template <typename V, int K, int STRIDE, int R>
void depthwise_plane(const Step &s, const float *input, int64_t row, int64_t from, int64_t to) {
  for (int64_t n = 0; n < s.images; n++) {
    const float *image = input + n * s.input_image;
    float *out = s.output + row * s.output_stride + n * s.output_image;
    int64_t y = from;
    for (; y + R <= to; y += R) depthwise_rows<V, K, STRIDE, R>(s, image, out, row, y);
    for (; y < to; y++) depthwise_rows<V, K, STRIDE, 1>(s, image, out, row, y);
  }
}

// Output rows at once: sevens, if they fit the height.
int64_t rows_at_once(const Step &s) { return s.height % 7 ? 4 : 7; }

template <typename V>
void depthwise_channel(const Step &s, const float *input, int64_t row, int64_t from, int64_t to) {
  using Plane = void (*)(const Step &, const float *, int64_t, int64_t, int64_t);
  static constexpr Plane planes[2][2][2] = {  // by kernel, stride, and rows at once
      {{depthwise_plane<V, 3, 1, 4>, depthwise_plane<V, 3, 1, 7>},
       {depthwise_plane<V, 3, 2, 4>, depthwise_plane<V, 3, 2, 7>}},
      {{depthwise_plane<V, 5, 1, 4>, depthwise_plane<V, 5, 1, 7>},
       {depthwise_plane<V, 5, 2, 4>, depthwise_plane<V, 5, 2, 7>}},
  };
  planes[s.kernel == 5][s.step == 2][rows_at_once(s) == 7](s, input, row, from, to);
}

void depthwise_channel(const Step &s, const float *input, int64_t row, int64_t from, int64_t to) {
  if (s.kind == DEPTHWISE) return depthwise(s, input, row);
  if (s.width <= WIDTH / 2) return depthwise_channel<narrow>(s, input, row, from, to);
  depthwise_channel<vec>(s, input, row, from, to);
}

template <int V, bool LAST>
void tile_of(const Step &s, int64_t begin, int64_t end, int64_t first, const Target &target) {
  switch (s.kind) {
    case SPARSE: return sparse_tile<V, LAST>(s, begin, end, first, target);
    case SPARSE_PAIRS: return pairs_tile<V, LAST>(s, begin, end, first, target);
    case SPARSE_BLOCKS: return blocks_tile<V, LAST>(s, begin, end, first, target);
  }
  if constexpr (V <= TILE) {
    for (int64_t block = begin / ROWS; block * ROWS < end; block++) {
      dense_tile<V>(s, block, first, target);
      if (LAST) dense_tail(s, block, target);  // while the block's weights are in the cache
    }
  }
}

template <int V>
void tile_of(const Step &s, int64_t begin, int64_t end, int64_t first, const Target &target) {
  if (s.tail && first + V == s.vectors) return tile_of<V, true>(s, begin, end, first, target);
  tile_of<V, false>(s, begin, end, first, target);
}

// `count` vectors from `first`, in as few tiles as there can be, of equal width where possible.
void tiles(const Step &s, int64_t begin, int64_t end, int64_t first, int64_t count, const Target &target) {
  const int64_t widest = s.kind == DENSE ? TILE : s.tile;
  while (count > 0) {
    const int64_t left = (count + widest - 1) / widest, width = (count + left - 1) / left;
    switch (width) {
      case 1: tile_of<1>(s, begin, end, first, target); break;
      case 2: tile_of<2>(s, begin, end, first, target); break;
      case 3: tile_of<3>(s, begin, end, first, target); break;
      case 4: tile_of<4>(s, begin, end, first, target); break;
      case 5: tile_of<5>(s, begin, end, first, target); break;
      case 6: tile_of<6>(s, begin, end, first, target); break;
      case 7: tile_of<7>(s, begin, end, first, target); break;
      default: tile_of<8>(s, begin, end, first, target);
    }
    first += width;
    count -= width;
  }
}

// The larger of weights and inputs is read once, the other again and again from a cache.
void area(const Step &s, int64_t begin, int64_t end, int64_t first, int64_t count) {
  const int64_t together = s.rows_first ? ROWS : end - begin;
  const bool far_output = (s.other ? 2 : 1) * s.rows * s.output_stride > FAR;
  const bool far_input = reads_columns(s) && !s.rows_first && s.offsets[s.columns[s.blocks] - 1] > FAR &&
                         s.starts[s.blocks * s.rows] > OFTEN * s.columns[s.blocks];
  const Target target{nullptr, 0, 0, far_input, far_output};
  for (int64_t row = begin; row < end; row += together)
    tiles(s, row, std::min(end, row + together), first, count, target);
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
  const int64_t together = std::max<int64_t>(NEAR / (plane + (s.compact ? gapped : 0)) / ROWS, 1) * ROWS;
  float *scratch = scratch_memory<PLANES>(together * (plane + gapped) + 4 * s.border + 4 * WIDTH) + s.border;
  float *padded = scratch + together * plane + s.border + 2 * WIDTH;
  std::fill_n(scratch - s.border, s.border, 0.0f);
  if (s.compact) std::fill_n(padded - s.border, s.border + together * gapped, 0.0f);
  for (int64_t first = begin; first < end; first += together) {
    const int64_t last = std::min(end, first + together);
    for (int64_t i = 0; i < last - first && !s.compact; i++)
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

// Rows [begin, end) of a step, and where it has pixels in vectors, `count` of them from `first`.
void part(const Step &s, int64_t begin, int64_t end, int64_t first, int64_t count) {
  switch (s.kind) {
    case SPARSE_VECTOR: return sparse_vector(s, begin, end);
    case DENSE_VECTOR: return dense_vector(s, begin, end);
    case COPY: return copy(s, begin, end);
    case ADD: return add(s, begin, end);
    case MAX_POOL: return max_pool(s, begin, end);
    case MEAN: return mean(s, begin, end);
    case PHASES: return phases(s, begin, end);
    case DEPTHWISE:
    case DEPTHWISE_ROWS: return channels(s, begin, end);
    default: return area(s, begin, end, first, count);
  }
}

// Threads that wait a little for the next step before they sleep: steps follow each other within microseconds.
class Team {
 public:
  // Every part of a step, over `threads` threads, the caller among them.
  template <typename Work>
  void share(int64_t threads, int64_t parts, const Work &work) {
    while (static_cast<int64_t>(helpers_.size()) < threads - 1)
      helpers_.emplace_back([this, index = helpers_.size()] { help(index); });
    run_ = [](const void *of, int64_t index) { (*static_cast<const Work *>(of))(index); };
    work_ = &work;
    parts_ = parts;
    next_.store(0, std::memory_order_relaxed);
    working_.store(threads - 1, std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      call_.store((call_.load(std::memory_order_relaxed) / MOST + 1) * MOST + threads - 1);
    }
    wake_.notify_all();
    take();
    while (working_.load(std::memory_order_acquire) > 0) pause();
  }

 private:
  static constexpr int PATIENCE = 20000;
  static constexpr uint64_t MOST = 1024;

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  void take() {
    for (int64_t index; (index = next_.fetch_add(1, std::memory_order_relaxed)) < parts_;) run_(work_, index);
  }

  void help(uint64_t index) {
    uint64_t seen = 0;
    for (;;) {
      for (int i = 0; i < PATIENCE && call_.load(std::memory_order_acquire) == seen; i++) pause();
      if (call_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return call_.load(std::memory_order_acquire) != seen; });
      }
      seen = call_.load(std::memory_order_acquire);
      if (index < seen % MOST) {
        take();
        working_.fetch_sub(1, std::memory_order_release);
      }
    }
  }

  std::vector<std::thread> helpers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> call_{0};  // how many there were, times MOST, plus how many helpers the last one wants
  std::atomic<int64_t> next_{0}, working_{0};
  int64_t parts_ = 0;
  void (*run_)(const void *, int64_t) = nullptr;
  const void *work_ = nullptr;
};

// Rows that share the work out evenly: by their taps where they differ, in multiples of what goes together.
int64_t boundary(const Step &s, int64_t part, int64_t parts) {
  if (part == parts) return s.rows;
  if (s.kind == SPARSE || s.kind == SPARSE_VECTOR) {
    const int64_t taps = s.starts[s.rows] * part / parts;
    return std::lower_bound(s.starts, s.starts + s.rows, taps) - s.starts;
  }
  int64_t together = 1;
  if (s.kind == SPARSE_BLOCKS) together = GROUP;
  if (s.kind == SPARSE_PAIRS || s.kind == DENSE || s.producer) together = ROWS;
  if (s.kind == DENSE_VECTOR) together = 4 * WIDTH;
  return std::min(s.rows, s.rows * part / parts / together * together);
}

void run_step(Team &team, const Step &s, int64_t threads) {
  if (s.consumer) return team.share(threads, bands(s), [&](int64_t number) { through_band(s, number); });
  if (threads == 1) return part(s, 0, s.rows, 0, s.vectors);
  const bool pixels = in_tiles(s);
  const int64_t wanted = 4 * threads, widest = s.kind == DENSE ? TILE : s.tile;
  const int64_t columns = pixels ? std::min(wanted, (s.vectors + widest - 1) / widest) : 1;
  const int64_t rows = std::min((wanted + columns - 1) / columns, s.rows);
  const int64_t width = pixels ? ((s.vectors + columns - 1) / columns + widest - 1) / widest * widest : s.vectors;
  team.share(threads, columns * rows, [&](int64_t index) {
    const int64_t first = index % columns * width, row = index / columns;
    const int64_t count = std::min(width, s.vectors - first);
    if (count > 0 || !pixels) part(s, boundary(s, row, rows), boundary(s, row + 1, rows), first, count);
  });
}

std::mutex turn;

Team &team() {
  static Team *only = new Team;  // never destroyed: its threads run until the process ends
  return *only;
}

}  // namespace

extern "C" {

int64_t vector_width() { return WIDTH; }
int64_t dense_rows() { return ROWS; }
int64_t ordered_rows() { return GROUP; }
int64_t step_bytes() { return sizeof(Step); }

// The steps in their order. One network at a time: they share the threads.
void run(const Step *steps, int64_t count, int64_t threads) {
  std::lock_guard<std::mutex> lock(turn);
  for (int64_t i = 0; i < count; i++) run_step(team(), steps[i], threads);
}

// The shortest of `repeats` runs of every step, in nanoseconds, each step among the others as it will be.
void time_steps(const Step *steps, int64_t count, int64_t threads, int64_t repeats, int64_t *shortest_ns) {
  std::lock_guard<std::mutex> lock(turn);
  std::fill_n(shortest_ns, count, std::numeric_limits<int64_t>::max());
  for (int64_t repeat = 0; repeat < repeats; repeat++)
    for (int64_t i = 0; i < count; i++) {
      const auto before = std::chrono::steady_clock::now();
      run_step(team(), steps[i], threads);
      const auto taken = std::chrono::steady_clock::now() - before;
      shortest_ns[i] = std::min<int64_t>(
          shortest_ns[i], std::chrono::duration_cast<std::chrono::nanoseconds>(taken).count());
    }
}

}  // extern "C"
