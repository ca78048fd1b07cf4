// The gradients' norm and the optimizer's step, over all tensors of a group at once.

#include <cmath>

#include "kernels.h"
#include "rows.h"

namespace contentv::CONTENTV_INSTRUCTIONS {
namespace {

/// Pieces of about this many values are shared out among threads: by the tensors' sizes alone.
constexpr int64_t PIECE = 1 << 15;

/// Calls body(tensor, first value, count, scratch) for the pieces of every tensor, in parallel.
template <typename Body>
void for_each_piece(const int64_t* counts, int64_t tensors, int64_t bytes, const Body& body) {
  std::unique_ptr<int64_t[]> first_piece(new int64_t[tensors + 1]);
  first_piece[0] = 0;
  for (int64_t tensor = 0; tensor < tensors; ++tensor) {
    first_piece[tensor + 1] = first_piece[tensor] + (counts[tensor] + PIECE - 1) / PIECE;
  }
  in_parallel(first_piece[tensors], bytes, [&](int64_t piece, char* scratch) {
    int64_t low = 0, high = tensors;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (first_piece[middle] <= piece ? low : high) = middle;
    }
    const int64_t first = (piece - first_piece[low]) * PIECE, left = counts[low] - first;
    body(low, piece, first, left < PIECE ? left : PIECE, scratch);
  });
}

// --- Norm ------------------------------------------------------------------------------------------------------------

/// Sum of squares of `count` values: in the accumulator's type over a short run, then in double.
template <typename A>
double squares_of(const A* values, int64_t count) {
  double total = 0;
  const int64_t run = 32 * LANES<A>;
  for (int64_t first = 0; first < count; first += run) {
    Vector<A> sums[4] = {};
    int64_t next = 0;
    sweep<A>(count - first < run ? count - first : run, [&](int64_t at, auto part) {
      const Vector<A> each = load(values + first + at, part);
      sums[next % 4] = multiply_add(each, each, sums[next % 4]);
      ++next;
    });
    total += sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
  return total;
}

/// A tensor of any strides as rows of equal length, `stride` apart inside: axes that lie one after the other in memory
/// are one. Their order is the memory's, which no sum of squares minds.
class AsRows {
 public:
  int64_t length = 1, stride = 1, rows = 1;

  explicit AsRows(const Array& array) {
    for (int64_t axis = 0; axis < array.rank; ++axis) {
      if (array.sizes[axis] == 1) continue;
      int64_t place = axes_++;
      for (; place > 0 && strides_[place - 1] < array.strides[axis]; --place) {
        strides_[place] = strides_[place - 1];
        sizes_[place] = sizes_[place - 1];
      }
      strides_[place] = array.strides[axis];
      sizes_[place] = array.sizes[axis];
    }
    while (axes_ > 0) {
      if (length > 1 && strides_[axes_ - 1] != length * stride) break;
      if (length == 1) stride = strides_[axes_ - 1];
      length *= sizes_[--axes_];
    }
    for (int64_t axis = 0; axis < axes_; ++axis) rows *= sizes_[axis];
  }

  int64_t offset(int64_t row) const {
    int64_t offset = 0;
    for (int64_t axis = axes_ - 1; axis >= 0; --axis) {
      offset += row % sizes_[axis] * strides_[axis];
      row /= sizes_[axis];
    }
    return offset;
  }

 private:
  static constexpr int64_t MOST_AXES = 64;  // torch's own limit
  int64_t axes_ = 0, sizes_[MOST_AXES], strides_[MOST_AXES];
};

template <typename A>
double squares_between(const Array& array, const AsRows& shape, int64_t first, int64_t count, A* scratch) {
  double total = 0;
  while (count > 0) {
    const int64_t row = first / shape.length, at = first % shape.length;
    const int64_t taken = shape.length - at < count ? shape.length - at : count;
    const char* from = static_cast<const char*>(array.data);
    from += (shape.offset(row) + at * shape.stride) * size_of(array.type);
    const A* values = scratch;
    if (array.type == TYPE<A> && shape.stride == 1) values = reinterpret_cast<const A*>(from);
    else gather(from, array.type, shape.stride, taken, scratch);
    total += squares_of(values, taken);
    first += taken;
    count -= taken;
  }
  return total;
}

// --- Step ------------------------------------------------------------------------------------------------------------

/// The step's numbers as the state's type has them, computed in double like torch's own.
template <typename A>
struct StepNumbers {
  A keep, lerp, beta2, square, root, epsilon, rate, ema_keep, ema_take, clip;

  StepNumbers(const AdamWNumbers& numbers, const Array& clip_factor)
      : keep(1 - numbers.lr * numbers.weight_decay),
        lerp(1 - numbers.beta1),
        beta2(numbers.beta2),
        square(1 - numbers.beta2),
        root(std::sqrt(1 - std::pow(numbers.beta2, numbers.step))),
        epsilon(numbers.epsilon),
        rate(-numbers.lr / (1 - std::pow(numbers.beta1, numbers.step))),
        ema_keep(numbers.ema_decay),
        ema_take(1 - numbers.ema_decay),
        clip(Reader<A>(clip_factor).value(0)) {}
};

template <typename A>
struct StepRows {
  A *master, *moment1, *moment2, *ema, *copy;
  const A* gradient;
};

/// The order of operations of the contract, each rounded by itself.
template <typename A>
void step(const StepRows<A>& rows, const StepNumbers<A>& numbers, int64_t count) {
  sweep<A>(count, [&](int64_t at, auto part) {
    const Vector<A> clipped = load(rows.gradient + at, part) * numbers.clip;
    Vector<A> moment1 = load(rows.moment1 + at, part), moment2 = load(rows.moment2 + at, part);
    Vector<A> master = load(rows.master + at, part) * numbers.keep;
    moment1 = moment1 + (clipped - moment1) * numbers.lerp;
    moment2 = moment2 * numbers.beta2 + clipped * clipped * numbers.square;
    master = master + moment1 * numbers.rate / (square_root(moment2) / numbers.root + numbers.epsilon);
    store(rows.moment1 + at, moment1, part);
    store(rows.moment2 + at, moment2, part);
    store(rows.master + at, master, part);
    if (rows.ema) store(rows.ema + at, load(rows.ema + at, part) * numbers.ema_keep + master * numbers.ema_take, part);
    if (rows.copy) store(rows.copy + at, master, part);
  });
}

}  // namespace

void gradient_norm(const Arrays& gradients, const Array& squared) {
  std::unique_ptr<int64_t[]> counts(new int64_t[gradients.count]);
  int64_t pieces = 0;
  for (int64_t tensor = 0; tensor < gradients.count; ++tensor) {
    counts[tensor] = gradients.first[tensor].count();
    pieces += (counts[tensor] + PIECE - 1) / PIECE;
  }
  std::unique_ptr<double[]> sums(new double[pieces]);
  for_each_piece(counts.get(), gradients.count, PIECE * sizeof(double),
                 [&](int64_t tensor, int64_t piece, int64_t first, int64_t count, char* scratch) {
    const Array& array = gradients.first[tensor];
    const AsRows shape(array);
    with_accumulator(array.type, [&](auto zero) {
      sums[piece] = squares_between(array, shape, first, count, reinterpret_cast<decltype(zero)*>(scratch));
    });
  });
  double total = 0;
  for (int64_t piece = 0; piece < pieces; ++piece) total += sums[piece];
  Writer<double>(squared).put(0, total);
}

void adamw(const AdamWState& state, const Array& clip_factor, const AdamWNumbers& numbers) {
  const int64_t tensors = state.masters.count;
  std::unique_ptr<int64_t[]> counts(new int64_t[tensors]);
  for (int64_t tensor = 0; tensor < tensors; ++tensor) counts[tensor] = state.masters.first[tensor].count();
  with_accumulator(state.masters.first[0].type, [&](auto zero) {
    using A = decltype(zero);
    const StepNumbers<A> typed(numbers, clip_factor);
    for_each_piece(counts.get(), tensors, 2 * PIECE * sizeof(A),
                   [&](int64_t tensor, int64_t, int64_t first, int64_t count, char* scratch) {
      auto place = [&](const Arrays& arrays) -> A* {
        return arrays.count ? static_cast<A*>(arrays.first[tensor].data) + first : nullptr;
      };
      StepRows<A> rows{place(state.masters), place(state.moments1), place(state.moments2), place(state.emas),
                       nullptr, nullptr};
      A* gradient = reinterpret_cast<A*>(scratch);
      Array flat = state.gradients.first[tensor];
      flat.rank = 0;  // contiguous: one row
      rows.gradient = Reader<A>(flat).row(first, count, gradient);
      if (state.copies.count) rows.copy = Writer<A>(state.copies.first[tensor]).open(first, gradient + PIECE);
      step(rows, typed, count);
      if (rows.copy) Writer<A>(state.copies.first[tensor]).close(first, count, rows.copy);
    });
  });
}

}  // namespace contentv::CONTENTV_INSTRUCTIONS
