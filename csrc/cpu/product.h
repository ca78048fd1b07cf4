// A matrix product of any strides: both factors are packed into panels that a tile of the output reads from one end to
// the other, and blocks of tiles are shared out among the threads. A block packs what it needs for itself, so that its
// panels lie in its own core's cache: a factor packed for all would be read from the cache that cores share, or from
// memory. What a panel and a tile are is the instruction set's: product.cpp, product_amx.cpp.
//
// Scheme: Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, ACM TOMS 34(3), 2008.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace contentv::CONTENTV_INSTRUCTIONS {

/// One factor as it is packed: `count` indices of the output (rows of left, columns of right) along `index`, and the
/// depth that is summed over along `depth`; strides are counted in values.
template <typename A>
struct Factor {
  const A* data;
  int64_t count, index, depth;

  Factor from(int64_t first_index, int64_t first_depth) const {
    return {data + first_index * index + first_depth * depth, count - first_index, index, depth};
  }
};

/// The output, and what a tile of it starts from: zero, the bias, or what is there.
template <typename A>
struct Output {
  A* data;
  int64_t row;
  const A* bias;
  bool add;
};

/// A tile of the output while the one before is computed: nothing has touched it for long.
template <int64_t ROWS, int64_t COLUMNS, typename A>
void prefetch_tile(const Output<A>& out, int64_t row, int64_t end, int64_t column) {
  for (end = end < row + ROWS ? end : row + ROWS; row < end; ++row) {
    for (int64_t at = 0; at < COLUMNS; at += 64 / static_cast<int64_t>(sizeof(A))) {
      __builtin_prefetch(out.data + row * out.row + column + at, 1);
    }
  }
}

/// One tile, through memory of its own where the output, `rows` x `columns` from here on, ends inside it: begun with the
/// bias, with what is there, or with nothing; then multiply(tile, its row, add). `is_begun`: some of the depth is in it.
template <int64_t ROWS, int64_t COLUMNS, typename A, typename Multiply>
inline __attribute__((always_inline)) void fill_tile(
    const Output<A>& out, int64_t row, int64_t column, int64_t rows, int64_t columns, bool is_begun,
    const Multiply& multiply) {
  const bool is_whole = rows >= ROWS && columns >= COLUMNS, add = is_begun || out.add || out.bias;
  rows = rows < ROWS ? rows : ROWS, columns = columns < COLUMNS ? columns : COLUMNS;
  alignas(64) A apart[ROWS * COLUMNS];
  A* there = out.data + row * out.row + column;
  A* tile = is_whole ? there : apart;
  const int64_t tile_row = is_whole ? out.row : COLUMNS;
  if (out.bias && !is_begun) {
    for (int64_t r = 0; r < rows; ++r) std::memcpy(tile + r * tile_row, out.bias + column, columns * sizeof(A));
  } else if (add && !is_whole) {
    for (int64_t r = 0; r < rows; ++r) std::memcpy(tile + r * tile_row, there + r * out.row, columns * sizeof(A));
  }
  multiply(tile, tile_row, add);
  if (!is_whole) {
    for (int64_t r = 0; r < rows; ++r) std::memcpy(there + r * out.row, tile + r * tile_row, columns * sizeof(A));
  }
}

inline int64_t pieces(int64_t total, int64_t size) { return (total + size - 1) / size; }

/// A factor that lies in memory as the type it is multiplied in: rows of left, columns of right.
template <typename A>
Factor<A> factor_of(const Array& array, int index_axis) {
  const int64_t* strides = array.strides;
  return {static_cast<const A*>(array.data), array.sizes[index_axis], strides[index_axis], strides[1 - index_axis]};
}

}  // namespace contentv::CONTENTV_INSTRUCTIONS
