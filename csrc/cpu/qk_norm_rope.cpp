// RMSNorm of queries and keys, head by head, and the rotation of their halves.

#include "kernels.h"
#include "rows.h"

namespace contentv::CONTENTV_INSTRUCTIONS {
namespace {

/// The rotation of a token: cosines and sines of R = E / 2 pairs, or none.
template <typename A>
struct Rotation {
  const A *cos = nullptr, *sin = nullptr;
};

template <typename A>
class Tables {
 public:
  Tables(const NormRopeInputs& inputs) : cos_(inputs.cos), sin_(inputs.sin) {}

  template <typename Scratch>
  Rotation<A> of(int64_t token, int64_t half, const Scratch& scratch) const {
    if (!cos_.is_there()) return {};
    return {cos_.row(cos_.at(token), half, scratch(0)), sin_.row(sin_.at(token), half, scratch(1))};
  }

 private:
  Reader<A> cos_, sin_;
};

/// first, second = first cos - second sin, second cos + first sin; `direction` -1 turns back.
template <typename A>
void rotate(A* row, int64_t half, Rotation<A> rotation, A direction) {
  sweep<A>(half, [&](int64_t at, auto part) {
    const Vector<A> first = load(row + at, part), second = load(row + half + at, part);
    const Vector<A> cos = load(rotation.cos + at, part), sin = load(rotation.sin + at, part) * direction;
    store(row + at, first * cos - second * sin, part);
    store(row + half + at, multiply_add(second, cos, first * sin), part);
  });
}

/// One of queries and keys, forward.
template <typename A>
struct Side {
  Reader<A> from;
  Writer<A> to, reciprocal;
  const A* gain;

  template <typename Scratch>
  void norm(int64_t token, int64_t sample, int64_t head, int64_t width, double epsilon, Rotation<A> rotation,
            const Scratch& scratch) const {
    const A* row = from.row(from.at(token, sample, head), width, scratch(2));
    Vector<A> squares = {};
    sweep<A>(width, [&](int64_t at, auto part) {
      const Vector<A> values = load(row + at, part);
      squares = multiply_add(values, values, squares);
    });
    const A mean = sum_of(squares) / width + static_cast<A>(epsilon);
    const A factor = 1 / square_root(broadcast(mean))[0];
    const int64_t place = to.at(token, sample, head);
    A* out = to.open(place, scratch(3));
    sweep<A>(width, [&](int64_t at, auto part) {
      store(out + at, load(row + at, part) * factor * load(gain + at, part), part);
    });
    if (rotation.cos) rotate(out, width / 2, rotation, A(1));
    to.close(place, width, out);
    reciprocal.put(reciprocal.at(token, sample, head), factor);
  }
};

/// One of queries and keys, backward: with n = x * reciprocal and g = d_out * gain, turned back,
/// d_x = reciprocal (g - n mean_E(g n)) and d_gain = sum(d_out n).
template <typename A>
struct SideBackward {
  Reader<A> d_out, from, reciprocal;
  Writer<A> to;
  const A* gain;

  template <typename Scratch>
  void norm(int64_t token, int64_t sample, int64_t head, int64_t width, Rotation<A> rotation, A* d_gain,
            const Scratch& scratch) const {
    const A* row = from.row(from.at(token, sample, head), width, scratch(2));
    const A factor = reciprocal.value(reciprocal.at(token, sample, head));
    A* gradient = scratch(3);
    d_out.copy(d_out.at(token, sample, head), width, gradient);
    if (rotation.cos) rotate(gradient, width / 2, rotation, A(-1));
    Vector<A> sum = {};
    sweep<A>(width, [&](int64_t at, auto part) {
      const Vector<A> normed = load(row + at, part) * factor, turned = load(gradient + at, part);
      const Vector<A> scaled = turned * load(gain + at, part);
      sum = multiply_add(scaled, normed, sum);
      store(d_gain + at, multiply_add(turned, normed, load(d_gain + at, part)), part);
      store(gradient + at, scaled, part);
    });
    const A mean = sum_of(sum) / width;
    const int64_t place = to.at(token, sample, head);
    A* d_row = to.open(place, scratch(4));
    sweep<A>(width, [&](int64_t at, auto part) {
      const Vector<A> normed = load(row + at, part) * factor;
      store(d_row + at, (load(gradient + at, part) - normed * mean) * factor, part);
    });
    to.close(place, width, d_row);
  }
};

}  // namespace

void qk_norm_rope(const NormRopeInputs& inputs, double epsilon, const NormRopeOutputs& outputs) {
  const int64_t tokens = inputs.q.sizes[0], batch = inputs.q.sizes[1], width = inputs.q.sizes[3];
  const Chunks chunks(tokens);
  with_accumulator(inputs.q.type, [&](auto zero) {
    using A = decltype(zero);
    const Tables<A> tables(inputs);
    for_each_chunk<A>(1, chunks, 6, width, [&](int64_t, int64_t chunk, auto scratch) {
      Reader<A>(inputs.q_gain).copy(0, width, scratch(4));
      Reader<A>(inputs.k_gain).copy(0, width, scratch(5));
      const Side<A> q{Reader<A>(inputs.q), Writer<A>(outputs.q), Writer<A>(outputs.q_reciprocal), scratch(4)};
      const Side<A> k{Reader<A>(inputs.k), Writer<A>(outputs.k), Writer<A>(outputs.k_reciprocal), scratch(5)};
      for (int64_t token = chunks.begin(chunk); token < chunks.end(chunk); ++token) {
        const Rotation<A> rotation = tables.of(token, width / 2, scratch);
        for (int64_t sample = 0; sample < batch; ++sample) {
          for (int64_t head = 0; head < inputs.q.sizes[2]; ++head) {
            q.norm(token, sample, head, width, epsilon, rotation, scratch);
          }
          for (int64_t head = 0; head < inputs.k.sizes[2]; ++head) {
            k.norm(token, sample, head, width, epsilon, rotation, scratch);
          }
        }
      }
    });
  });
}

void qk_norm_rope_backward(const NormRopeInputs& inputs, const NormRopeGradients& given) {
  const int64_t tokens = inputs.q.sizes[0], batch = inputs.q.sizes[1], width = inputs.q.sizes[3];
  const Chunks chunks(tokens);
  with_accumulator(inputs.q.type, [&](auto zero) {
    using A = decltype(zero);
    const Tables<A> tables(inputs);
    ColumnSums<A> d_q_gains(1, chunks, width), d_k_gains(1, chunks, width);
    for_each_chunk<A>(1, chunks, 7, width, [&](int64_t, int64_t chunk, auto scratch) {
      Reader<A>(inputs.q_gain).copy(0, width, scratch(5));
      Reader<A>(inputs.k_gain).copy(0, width, scratch(6));
      const SideBackward<A> q{Reader<A>(given.d_q_out), Reader<A>(inputs.q), Reader<A>(given.q_reciprocal),
                              Writer<A>(given.d_q), scratch(5)};
      const SideBackward<A> k{Reader<A>(given.d_k_out), Reader<A>(inputs.k), Reader<A>(given.k_reciprocal),
                              Writer<A>(given.d_k), scratch(6)};
      A *d_q_gain = d_q_gains.of(0, chunk), *d_k_gain = d_k_gains.of(0, chunk);
      for (int64_t token = chunks.begin(chunk); token < chunks.end(chunk); ++token) {
        const Rotation<A> rotation = tables.of(token, width / 2, scratch);
        for (int64_t sample = 0; sample < batch; ++sample) {
          for (int64_t head = 0; head < inputs.q.sizes[2]; ++head) {
            q.norm(token, sample, head, width, rotation, d_q_gain, scratch);
          }
          for (int64_t head = 0; head < inputs.k.sizes[2]; ++head) {
            k.norm(token, sample, head, width, rotation, d_k_gain, scratch);
          }
        }
      }
    });
    d_q_gains.finish(given.d_q_gain);
    d_k_gains.finish(given.d_k_gain);
  });
}

}  // namespace contentv::CONTENTV_INSTRUCTIONS
