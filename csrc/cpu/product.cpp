// Matrix products by multiply and add.

#include "product.h"

#include "matrix.h"
#include "memory.h"

namespace contentv::CONTENTV_INSTRUCTIONS {
namespace {

/// Panels are [depth][indices], so that a tile reads both factors as they lie.
template <typename Accumulated>
struct MultiplyAdd {
  using A = Accumulated;
  static constexpr int64_t ROWS = rows_of(WIDEST), COLUMNS = WIDEST * LANES<A>;

  static int64_t panel_bytes(int64_t indices, int64_t depth) {
    return (indices * depth * static_cast<int64_t>(sizeof(A)) + 63) / 64 * 64;
  }

  static void pack_left(Factor<A> from, int64_t count, int64_t depth, char* to) { pack<ROWS>(from, count, depth, to); }

  static void pack_right(Factor<A> from, int64_t count, int64_t depth, char* to) {
    pack<COLUMNS>(from, count, depth, to);
  }

  static void begin() {}
  static void end() {}

  static void multiply(int64_t depth, const char* left, const char* right, A* out, int64_t row, bool add) {
    multiply_tile<A, ROWS, WIDEST>(depth, {reinterpret_cast<const A*>(left), 1, ROWS},
                                   {reinterpret_cast<const A*>(right), COLUMNS}, {out, row}, add);
  }

 private:
  template <int64_t INDICES>
  static void pack(Factor<A> from, int64_t count, int64_t depth, char* memory) {
    A* to = reinterpret_cast<A*>(memory);
    if (from.depth == 1) {
      for (int64_t index = 0; index < INDICES; ++index) {
        const A* line = from.data + index * from.index;
        for (int64_t at = 0; at < depth; ++at) to[at * INDICES + index] = index < count ? line[at] : A(0);
      }
      return;
    }
    for (int64_t at = 0; at < depth; ++at, to += INDICES) {
      const A* line = from.data + at * from.depth;
      for (int64_t index = 0; index < INDICES; ++index) to[index] = index < count ? line[index * from.index] : A(0);
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
  PackedProduct<MultiplyAdd<A>>(left.sizes[1], widened<A>(left, 0, left_copy), widened<A>(right, 1, right_copy),
                                {sum, columns, bias_copy.get(), add})
      .run();
  if (out.type != TYPE<A>) scatter(sum, rows * columns, out.data, out.type);
}

}  // namespace

void matrix_product(const Array& left, const Array& right, const Array& bias, const Array& out, bool add) {
  with_accumulator(left.type, [&](auto zero) { multiply_arrays<decltype(zero)>(left, right, bias, out, add); });
}

}  // namespace contentv::CONTENTV_INSTRUCTIONS
