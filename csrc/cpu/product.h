// A matrix product of any strides: both factors are packed into panels that a tile of the output reads from one end to
// the other, then the tiles are shared out among the threads. What a panel and a tile are is the instruction set's.
//
// Scheme: Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, ACM TOMS 34(3), 2008.
#pragma once

#include <cstdlib>
#include <memory>
#include <new>

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

inline int64_t less_of(int64_t left, int64_t right) { return left < right ? left : right; }
inline int64_t pieces(int64_t total, int64_t size) { return (total + size - 1) / size; }

/// A factor that lies in memory as the type it is multiplied in: rows of left, columns of right.
template <typename A>
Factor<A> factor_of(const Array& array, int index_axis) {
  const int64_t* strides = array.strides;
  return {static_cast<const A*>(array.data), array.sizes[index_axis], strides[index_axis], strides[1 - index_axis]};
}

/// Tiling says: A; ROWS and COLUMNS of a tile; panel_bytes(indices, depth); pack_left and pack_right(factor, indices,
/// depth, to); begin() and end() around a task; multiply(depth, left, right, out, row, add).
template <typename Tiling>
class PackedProduct {
 public:
  using A = typename Tiling::A;

  PackedProduct(int64_t depth, Factor<A> left, Factor<A> right, Output<A> out)
      : depth_(depth), left_(left), right_(right), out_(out) {}

  void run() const {
    const int64_t panels = pieces(less_of(left_.count, ROWS), Tiling::ROWS);
    const int64_t bytes = panels * Tiling::panel_bytes(Tiling::ROWS, less_of(depth_, DEPTH));
    const std::unique_ptr<char, decltype(&std::free)> memory(static_cast<char*>(std::aligned_alloc(64, bytes)), std::free);
    if (bytes && !memory) throw std::bad_alloc();
    for (int64_t row = 0; row < left_.count; row += ROWS) {
      // Without depth there is nothing to add; once through all the same, for the zeros or the bias.
      for (int64_t at = 0; at < depth_ || at == 0; at += DEPTH) {
        multiply_block({row, less_of(ROWS, left_.count - row), at, less_of(DEPTH, depth_ - at)}, memory.get());
      }
    }
  }

 private:
  // What is packed at once: left's panels lie in the cache that the threads share, right's in a thread's own. A block of
  // the depth is added to the one before.
  static constexpr int64_t DEPTH = 512;
  static constexpr int64_t ROWS = 1024 / Tiling::ROWS * Tiling::ROWS, COLUMNS = 128 / Tiling::COLUMNS * Tiling::COLUMNS;

  struct Block {
    int64_t row, rows, at, depth;
  };

  void multiply_block(const Block& block, char* left) const {
    const int64_t row_tiles = pieces(block.rows, Tiling::ROWS);
    const int64_t left_panel = Tiling::panel_bytes(Tiling::ROWS, block.depth);
    const int64_t right_panel = Tiling::panel_bytes(Tiling::COLUMNS, block.depth);
    in_parallel(row_tiles, 0, [&](int64_t tile, char*) {
      const Factor<A> part = left_.from(block.row + tile * Tiling::ROWS, block.at);
      Tiling::pack_left(part, less_of(Tiling::ROWS, part.count), block.depth, left + tile * left_panel);
    });
    const int64_t bytes = COLUMNS / Tiling::COLUMNS * right_panel;
    in_parallel(pieces(right_.count, COLUMNS), bytes, [&](int64_t task, char* right) {
      const int64_t first = task * COLUMNS, tiles = pieces(less_of(COLUMNS, right_.count - first), Tiling::COLUMNS);
      Tiling::begin();
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const Factor<A> part = right_.from(first + tile * Tiling::COLUMNS, block.at);
        Tiling::pack_right(part, less_of(Tiling::COLUMNS, part.count), block.depth, right + tile * right_panel);
      }
      for (int64_t r = 0; r < row_tiles; ++r) {
        for (int64_t c = 0; c < tiles; ++c) {
          const int64_t row = block.row + r * Tiling::ROWS, column = first + c * Tiling::COLUMNS;
          prefetch(c + 1 < tiles ? row : row + Tiling::ROWS, c + 1 < tiles ? column + Tiling::COLUMNS : first);
          multiply_tile(block, left + r * left_panel, right + c * right_panel, row, column);
        }
      }
      Tiling::end();
    });
  }

  /// The output's next tile, which nothing has touched for long, while this one is computed.
  void prefetch(int64_t row, int64_t column) const {
    const int64_t end = less_of(row + Tiling::ROWS, left_.count);
    for (; row < end; ++row) {
      for (int64_t at = 0; at < Tiling::COLUMNS; at += 64 / static_cast<int64_t>(sizeof(A))) {
        __builtin_prefetch(out_.data + row * out_.row + column + at, 1);
      }
    }
  }

  /// One tile, through memory of its own where the output ends inside it.
  void multiply_tile(const Block& block, const char* left, const char* right, int64_t row, int64_t column) const {
    const int64_t rows = less_of(Tiling::ROWS, left_.count - row);
    const int64_t columns = less_of(Tiling::COLUMNS, right_.count - column);
    const bool is_whole = rows == Tiling::ROWS && columns == Tiling::COLUMNS, is_begun = block.at > 0;
    const bool add = is_begun || out_.add || out_.bias;
    alignas(64) A apart[Tiling::ROWS * Tiling::COLUMNS];
    A* there = out_.data + row * out_.row + column;
    A* tile = is_whole ? there : apart;
    const int64_t tile_row = is_whole ? out_.row : Tiling::COLUMNS;
    if (out_.bias && !is_begun) {
      for (int64_t r = 0; r < rows; ++r) std::memcpy(tile + r * tile_row, out_.bias + column, columns * sizeof(A));
    } else if (add && !is_whole) {
      for (int64_t r = 0; r < rows; ++r) std::memcpy(tile + r * tile_row, there + r * out_.row, columns * sizeof(A));
    }
    Tiling::multiply(block.depth, left, right, tile, tile_row, add);
    if (!is_whole) {
      for (int64_t r = 0; r < rows; ++r) std::memcpy(there + r * out_.row, tile + r * tile_row, columns * sizeof(A));
    }
  }

  int64_t depth_;
  Factor<A> left_, right_;
  Output<A> out_;
};

}  // namespace contentv::CONTENTV_INSTRUCTIONS
