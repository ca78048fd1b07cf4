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

  static void begin() {}
  static void end() {}

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
