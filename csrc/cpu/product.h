// A matrix product of any strides: both factors are packed into panels that a tile of the output reads from one end to
// the other, then the tiles are shared out among the threads. What a panel and a tile are is the instruction set's.
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

inline int64_t pieces(int64_t total, int64_t size) { return (total + size - 1) / size; }

/// A factor that lies in memory as the type it is multiplied in: rows of left, columns of right.
template <typename A>
Factor<A> factor_of(const Array& array, int index_axis) {
  const int64_t* strides = array.strides;
  return {static_cast<const A*>(array.data), array.sizes[index_axis], strides[index_axis], strides[1 - index_axis]};
}

/// Tiling says: A; ROWS and COLUMNS of a tile; panel_bytes(indices, depth); pack_left and pack_right(factor, indices,
/// depth, to); begin() and end() around a task; multiply(depth, left, right, out, row, add).
///
/// A task has a block of the output. It packs what it needs for itself, so that its panels lie in its own core's cache:
/// a factor packed for all would be read from the cache that cores share, or from memory.
template <typename Tiling>
class PackedProduct {
 public:
  using A = typename Tiling::A;

  PackedProduct(int64_t depth, Factor<A> left, Factor<A> right, Output<A> out)
      : depth_(depth), left_(left), right_(right), out_(out) {}

  void run() const {
    if (left_.count == 0 || right_.count == 0) return;
    // As many tasks as keep every thread busy: blocks of rows as long as there are rows enough, else columns too, whose
    // blocks pack the same rows again. No sum depends on it.
    const int64_t threads = thread_count(), least = pieces(left_.count, ROWS);
    const bool has_rows = left_.count >= threads * ROWS / 2;
    const int64_t row_parts = has_rows ? pieces(least, threads) * threads : least;
    const int64_t rows = pieces(pieces(left_.count, row_parts), Tiling::ROWS) * Tiling::ROWS;
    const int64_t column_parts = has_rows ? 1 : pieces(threads, row_parts);
    const int64_t columns = pieces(pieces(right_.count, column_parts), Tiling::COLUMNS) * Tiling::COLUMNS;
    const int64_t depth = smaller(depth_, DEPTH);
    const int64_t left_bytes = rows / Tiling::ROWS * Tiling::panel_bytes(Tiling::ROWS, depth);
    const int64_t right_bytes = GROUP * Tiling::panel_bytes(Tiling::COLUMNS, depth);
    const int64_t down = pieces(left_.count, rows), across = pieces(right_.count, columns);
    in_parallel(down * across, left_bytes + right_bytes, [&](int64_t task, char* memory) {
      const int64_t row = task % down * rows, column = task / down * columns;
      Tiling::begin();
      // Once through even without depth, for the zeros or the bias.
      for (int64_t at = 0; at < depth_ || at == 0; at += DEPTH) {
        multiply_block({row, smaller(row + rows, left_.count), column, smaller(column + columns, right_.count), at,
                        smaller(DEPTH, depth_ - at)},
                       memory, memory + left_bytes);
      }
      Tiling::end();
    });
  }

 private:
  // What a task packs at once: half a core's second cache of left, and so many tiles of right. A block of the depth is
  // added to the one before.
  static constexpr int64_t DEPTH = 512, ROWS = 512, GROUP = 2;

  struct Block {
    int64_t row, row_end, column, column_end, at, depth;
  };

  void multiply_block(const Block& block, char* left, char* right) const {
    const int64_t left_panel = Tiling::panel_bytes(Tiling::ROWS, block.depth);
    const int64_t right_panel = Tiling::panel_bytes(Tiling::COLUMNS, block.depth);
    // Without depth there is no panel, nor memory for one: a tile is what it starts from.
    const bool is_packed = block.depth > 0;
    for (int64_t row = block.row, panel = 0; is_packed && row < block.row_end; row += Tiling::ROWS, ++panel) {
      const int64_t count = smaller(Tiling::ROWS, block.row_end - row);
      Tiling::pack_left(left_.from(row, block.at), count, block.depth, left + panel * left_panel);
    }
    for (int64_t first = block.column; first < block.column_end; first += GROUP * Tiling::COLUMNS) {
      const int64_t end = smaller(first + GROUP * Tiling::COLUMNS, block.column_end);
      for (int64_t column = first, panel = 0; is_packed && column < end; column += Tiling::COLUMNS, ++panel) {
        const int64_t count = smaller(Tiling::COLUMNS, end - column);
        Tiling::pack_right(right_.from(column, block.at), count, block.depth, right + panel * right_panel);
      }
      for (int64_t row = block.row, left_at = 0; row < block.row_end; row += Tiling::ROWS, left_at += left_panel) {
        for (int64_t column = first, right_at = 0; column < end; column += Tiling::COLUMNS, right_at += right_panel) {
          const bool is_last = column + Tiling::COLUMNS >= end;
          prefetch(is_last ? row + Tiling::ROWS : row, is_last ? first : column + Tiling::COLUMNS);
          multiply_tile(block, left + left_at, right + right_at, row, column);
        }
      }
    }
  }

  /// The output's next tile, which nothing has touched for long, while this one is computed.
  void prefetch(int64_t row, int64_t column) const {
    const int64_t end = smaller(row + Tiling::ROWS, left_.count);
    for (; row < end; ++row) {
      for (int64_t at = 0; at < Tiling::COLUMNS; at += 64 / static_cast<int64_t>(sizeof(A))) {
        __builtin_prefetch(out_.data + row * out_.row + column + at, 1);
      }
    }
  }

  /// One tile, through memory of its own where the output ends inside it.
  void multiply_tile(const Block& block, const char* left, const char* right, int64_t row, int64_t column) const {
    const int64_t rows = smaller(Tiling::ROWS, left_.count - row);
    const int64_t columns = smaller(Tiling::COLUMNS, right_.count - column);
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
