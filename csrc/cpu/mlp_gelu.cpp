// Bias and tanh-GELU between the MLP's two linears.

#include "kernels.h"
#include "rows.h"

namespace contentv::CONTENTV_INSTRUCTIONS {
namespace {

constexpr double ROOT = 0.7978845608028654;  // sqrt(2 / pi)
constexpr double CUBIC = 0.044715;
constexpr double LOG2_E = 1.4426950408889634;

/// e = exp(-2u) for u = sqrt(2 / pi) (h + 0.044715 h^3), so that (1 + tanh(u)) / 2 = 1 / (1 + e).
template <typename A>
Vector<A> falling(Vector<A> h) {
  const Vector<A> inner = multiply_add(h * h, broadcast(static_cast<A>(CUBIC)), broadcast(A(1)));
  return power_of_two(h * inner * static_cast<A>(-2 * ROOT * LOG2_E));
}

}  // namespace

void mlp_gelu(const Array& hidden, const Array& bias, const Array& out) {
  const int64_t batch = hidden.sizes[1], width = hidden.sizes[2];
  const Chunks chunks(hidden.sizes[0] * batch);
  with_accumulator(hidden.type, [&](auto zero) {
    using A = decltype(zero);
    const Reader<A> from(hidden);
    const Writer<A> to(out);
    for_each_chunk<A>(1, chunks, 3, width, [&](int64_t, int64_t chunk, auto scratch) {
      const A* bias_row = Reader<A>(bias).row(0, width, scratch(0));
      for (int64_t index = chunks.begin(chunk); index < chunks.end(chunk); ++index) {
        const int64_t token = index / batch, sample = index % batch;
        const A* row = from.row(from.at(token, sample), width, scratch(1));
        A* out_row = to.open(to.at(token, sample), scratch(2));
        sweep<A>(width, [&](int64_t at, auto part) {
          const Vector<A> h = load(row + at, part) + load(bias_row + at, part);
          store(out_row + at, h / (falling<A>(h) + A(1)), part);
        });
        to.close(to.at(token, sample), width, out_row);
      }
    });
  });
}

/// With s = 1 / (1 + e): d out / d h = s + h s (1 - s) 2 u', where u' = sqrt(2 / pi) (1 + 3 * 0.044715 h^2).
void mlp_gelu_backward(
    const Array& d_out, const Array& hidden, const Array& bias, const Array& d_hidden, const Array& d_bias) {
  const int64_t batch = hidden.sizes[1], width = hidden.sizes[2];
  const Chunks chunks(hidden.sizes[0] * batch);
  with_accumulator(hidden.type, [&](auto zero) {
    using A = decltype(zero);
    const Reader<A> from(hidden), from_d_out(d_out);
    const Writer<A> to(d_hidden);
    ColumnSums<A> d_biases(1, chunks, width);
    for_each_chunk<A>(1, chunks, 4, width, [&](int64_t, int64_t chunk, auto scratch) {
      const A* bias_row = Reader<A>(bias).row(0, width, scratch(0));
      A* sums = d_biases.of(0, chunk);
      for (int64_t index = chunks.begin(chunk); index < chunks.end(chunk); ++index) {
        const int64_t token = index / batch, sample = index % batch;
        const A* row = from.row(from.at(token, sample), width, scratch(1));
        const A* gradient = from_d_out.row(from_d_out.at(token, sample), width, scratch(2));
        A* d_row = to.open(to.at(token, sample), scratch(3));
        sweep<A>(width, [&](int64_t at, auto part) {
          const Vector<A> h = load(row + at, part) + load(bias_row + at, part), e = falling<A>(h);
          const Vector<A> s = A(1) / (e + A(1));
          // s (1 - s) as e s^2, so that nothing cancels; far out on the left, where e may be infinite, it is nothing.
          const Vector<A> bell = e > A(1e30) ? Vector<A>() : e * s * s;
          const Vector<A> slope = multiply_add(h * h, broadcast(static_cast<A>(6 * ROOT * CUBIC)),
                                               broadcast(static_cast<A>(2 * ROOT)));
          const Vector<A> value = load(gradient + at, part) * multiply_add(h * slope, bell, s);
          store(sums + at, load(sums + at, part) + value, part);
          store(d_row + at, value, part);
        });
        to.close(to.at(token, sample), width, d_row);
      }
    });
    d_biases.finish(d_bias);
  });
}

}  // namespace contentv::CONTENTV_INSTRUCTIONS
