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
#include <chrono>
#include <cstdint>
#include <limits>
#include <mutex>

#if defined(__unix__)
#include <unistd.h>
#endif

#include "planes.h"
#include "team.h"
#include "windows.h"

namespace {

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
    case DEPTHWISE_ROWS:
    case DEPTHWISE_SHIFTED: return channels(s, begin, end);
    default: return area(s, begin, end, first, count);
  }
}

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

// Of the first-level cache; 0 where the system doesn't say.
int64_t cache_bytes() {
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  return std::max(0L, sysconf(_SC_LEVEL1_DCACHE_SIZE));
#else
  return 0;
#endif
}

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
