// A matrix over planes of pixels, tile by tile.

#pragma once

#include <algorithm>

#include "dense.h"
#include "sparse.h"

namespace {

// A product with a matrix over vectors of pixels.
bool in_tiles(const Step &s) { return s.kind <= DENSE; }
bool reads_columns(const Step &s) { return s.kind == SPARSE || s.kind == SPARSE_BLOCKS; }

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

}  // namespace
