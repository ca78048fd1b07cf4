// Matrix products by multiply and add.

#include "product.h"

#include <memory>

#include "matrix.h"
#include "memory.h"

namespace contentv::CONTENTV_INSTRUCTIONS {
namespace {

/// A panel of right is [depth][columns], one of left [rows][depth] or [depth][rows], as left lies in memory: a tile reads
/// it value by value and takes either.
template <typename Accumulated, bool LEFT_IN_ROWS>
struct MultiplyAdd {
  using A = Accumulated;
  static constexpr int64_t ROWS = rows_of(WIDEST), COLUMNS = WIDEST * LANES<A>;

  static int64_t panel_bytes(int64_t indices, int64_t depth) {
    return (indices * depth * static_cast<int64_t>(sizeof(A)) + 63) / 64 * 64;
  }

  static void pack_left(Factor<A> from, int64_t count, int64_t depth, char* memory) {
    A* to = reinterpret_cast<A*>(memory);
    if constexpr (LEFT_IN_ROWS) {
      for (int64_t row = 0; row < ROWS; ++row, to += depth) {
        if (row < count) std::memcpy(to, from.data + row * from.index, depth * sizeof(A));
        else std::memset(to, 0, depth * sizeof(A));
      }
    } else {
      for (int64_t at = 0; at < depth; ++at, to += ROWS) {
        const A* line = from.data + at * from.depth;
        for (int64_t row = 0; row < ROWS; ++row) to[row] = row < count ? line[row * from.index] : A(0);
      }
    }
  }

  static void pack_right(Factor<A> from, int64_t count, int64_t depth, char* memory) {
    A* to = reinterpret_cast<A*>(memory);
    for (int64_t column = 0; column < COLUMNS; column += LANES<A>) {
      const int64_t there = smaller(LANES<A>, count - column);
      const Factor<A> part = from.from(column, 0);
      for (int64_t at = 0; at < depth; at += LANES<A>) {
        Vector<A> rows[LANES<A>] = {};
        const int64_t deep = smaller(LANES<A>, depth - at);
        if (from.depth == 1) read_rows(part.data + at, part.index, there, deep, rows);
        else read_columns(part.from(0, at), there, deep, rows);
        if (from.depth == 1) transpose(rows);
        for (int64_t row = 0; row < deep; ++row) store(to + (at + row) * COLUMNS + column, rows[row]);
      }
    }
  }

  static void multiply(int64_t depth, const char* left, const char* right, A* out, int64_t row, bool add) {
    const int64_t left_row = LEFT_IN_ROWS ? depth : 1, left_depth = LEFT_IN_ROWS ? 1 : ROWS;
    multiply_tile<A, ROWS, WIDEST>(depth, {reinterpret_cast<const A*>(left), left_row, left_depth},
                                   {reinterpret_cast<const A*>(right), COLUMNS}, {out, row}, add);
  }

 private:
  using Square = Vector<A>[LANES<A>];

  static Vector<A> some(const A* from, int64_t count) {
    return count >= LANES<A> ? load(from) : load(from, static_cast<int>(count));
  }

  /// `count` rows of `width` values; the other rows are left as they are.
  static void read_rows(const A* from, int64_t row_stride, int64_t count, int64_t width, Square& rows) {
    for (int64_t row = 0; row < count; ++row) rows[row] = some(from + row * row_stride, width);
  }

  static void read_columns(Factor<A> from, int64_t count, int64_t depth, Square& rows) {
    if (count <= 0) return;
    if (from.index == 1) return read_rows(from.data, from.depth, depth, count, rows);
    for (int64_t at = 0; at < depth; ++at) {
      for (int64_t index = 0; index < count; ++index) rows[at][index] = from.data[at * from.depth + index * from.index];
    }
  }
};

/// Tiling says: A; ROWS and COLUMNS of a tile; panel_bytes(indices, depth); pack_left and pack_right(factor, indices,
/// depth, to); multiply(depth, left, right, out, row, add).
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
      // Once through even without depth, for the zeros or the bias.
      for (int64_t at = 0; at < depth_ || at == 0; at += DEPTH) {
        multiply_block({row, smaller(row + rows, left_.count), column, smaller(column + columns, right_.count), at,
                        smaller(DEPTH, depth_ - at)},
                       memory, memory + left_bytes);
      }
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
          prefetch_tile<Tiling::ROWS, Tiling::COLUMNS>(out_, is_last ? row + Tiling::ROWS : row, left_.count,
                                                       is_last ? first : column + Tiling::COLUMNS);
          fill_tile<Tiling::ROWS, Tiling::COLUMNS>(
              out_, row, column, left_.count - row, right_.count - column, block.at > 0,
              [&](A* tile, int64_t tile_row, bool add) {
                Tiling::multiply(block.depth, left + left_at, right + right_at, tile, tile_row, add);
              });
        }
      }
    }
  }

  int64_t depth_;
  Factor<A> left_, right_;
  Output<A> out_;
};

/// A factor, copied row by row where it is of another type than it is multiplied in.
template <typename A>
Factor<A> widened(const Array& array, int index_axis, std::unique_ptr<A[]>& copy) {
  if (array.type == TYPE<A>) return factor_of<A>(array, index_axis);
  const int64_t rows = array.sizes[0], columns = array.sizes[1];
  copy.reset(new A[rows * columns]);
  gather_rows(array.data, array.type, array.strides[0], array.strides[1], rows, columns, copy.get(), columns);
  if (index_axis == 0) return {copy.get(), rows, columns, 1};
  return {copy.get(), columns, 1, columns};
}

template <typename A>
void multiply_arrays(const Array& left, const Array& right, const Array& bias, const Array& out, bool add) {
  std::unique_ptr<A[]> left_copy, right_copy, bias_copy, out_copy;
  const int64_t rows = out.sizes[0], columns = out.sizes[1];
  if (bias.data) {
    bias_copy.reset(new A[columns]);
    Reader<A>(bias).copy(0, columns, bias_copy.get());
  }
  A* sum = static_cast<A*>(out.data);
  if (out.type != TYPE<A>) {
    out_copy.reset(new A[rows * columns]);
    sum = out_copy.get();
    if (add) gather(out.data, out.type, 1, rows * columns, sum);
  }
  const Factor<A> down = widened<A>(left, 0, left_copy), across = widened<A>(right, 1, right_copy);
  const Output<A> to = {sum, columns, bias_copy.get(), add};
  if (down.depth == 1) PackedProduct<MultiplyAdd<A, true>>(left.sizes[1], down, across, to).run();
  else PackedProduct<MultiplyAdd<A, false>>(left.sizes[1], down, across, to).run();
  if (out.type != TYPE<A>) scatter(sum, rows * columns, out.data, out.type);
}

}  // namespace

void matrix_product(const Array& left, const Array& right, const Array& bias, const Array& out, bool add) {
  with_accumulator(left.type, [&](auto zero) { multiply_arrays<decltype(zero)>(left, right, bias, out, add); });
}

}  // namespace contentv::CONTENTV_INSTRUCTIONS
