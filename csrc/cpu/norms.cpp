// The modulated LayerNorm, the gated residual, and both in one pass.

#include "kernels.h"
#include "rows.h"

namespace contentv::CONTENTV_INSTRUCTIONS {
namespace {

template <typename A>
struct Moments {
  A mean, reciprocal;
};

/// Mean and reciprocal deviation of a row; the variance is taken around the mean, so that nothing cancels.
template <typename A>
Moments<A> moments_of(const A* row, int64_t width, double epsilon) {
  Vector<A> sum = {}, squares = {};
  sweep<A>(width, [&](int64_t at, auto part) { sum += load(row + at, part); });
  const A mean = sum_of(sum) / width;
  sweep<A>(width, [&](int64_t at, auto part) {
    const Vector<A> centred = keep(load(row + at, part) - mean, part);
    squares = multiply_add(centred, centred, squares);
  });
  const A variance = sum_of(squares) / width + static_cast<A>(epsilon);
  return {mean, 1 / square_root(broadcast(variance))[0]};
}

/// to = (row - mean) * reciprocal * factor + shift
template <typename T, typename A>
void write_normed(const A* row, Moments<A> moments, const A* factor, const A* shift, int64_t width, T* to) {
  sweep<A>(width, [&](int64_t at, auto part) {
    const Vector<A> normed = (load(row + at, part) - moments.mean) * moments.reciprocal;
    store(to + at, multiply_add(normed, load(factor + at, part), load(shift + at, part)), part);
  });
}

/// What the norm's backward needs of a row, and its sums over D.
template <typename A>
struct NormRow {
  const A *row, *d_out, *factor;
  Moments<A> moments;
  A d_mean = 0, d_spread = 0;

  /// Means over D of d_out * factor, and of the same times the normed value; adds to the sums over S.
  void reduce(int64_t width, A* d_shift, A* d_scale) {
    Vector<A> plain = {}, weighted = {};
    sweep<A>(width, [&](int64_t at, auto part) {
      const Vector<A> gradient = load(d_out + at, part);
      const Vector<A> normed = (load(row + at, part) - moments.mean) * moments.reciprocal;
      const Vector<A> scaled = gradient * load(factor + at, part);
      plain += scaled;
      weighted = multiply_add(scaled, normed, weighted);
      store(d_shift + at, load(d_shift + at, part) + gradient, part);
      store(d_scale + at, multiply_add(gradient, normed, load(d_scale + at, part)), part);
    });
    d_mean = sum_of(plain) / width;
    d_spread = sum_of(weighted) / width;
  }

  template <typename Part>
  Vector<A> gradient(int64_t at, Part part) const {
    const Vector<A> normed = (load(row + at, part) - moments.mean) * moments.reciprocal;
    const Vector<A> scaled = load(d_out + at, part) * load(factor + at, part);
    return (scaled - d_mean - normed * d_spread) * moments.reciprocal;
  }
};

/// Calls body(sample, chunk, scratch rows) for every sample and chunk of its tokens; `rows` scratch rows of `width`.
template <typename A, typename Body>
void for_each_chunk(int64_t batch, const Chunks& chunks, int64_t rows, int64_t width, const Body& body) {
  const int64_t padded = whole_vectors<A>(width);
  in_parallel(batch * chunks.count, rows * padded * sizeof(A), [&](int64_t task, char* memory) {
    A* first = reinterpret_cast<A*>(memory);
    body(task / chunks.count, task % chunks.count, [&](int64_t row) { return first + row * padded; });
  });
}

template <typename A>
void keep_moments(const Array& mean, const Array& reciprocal, int64_t row, Moments<A> moments) {
  mean.at<A>()[row] = moments.mean;
  reciprocal.at<A>()[row] = moments.reciprocal;
}

}  // namespace

void modulated_norm(
    const Array& x, const Array& shift, const Array& scale, double epsilon, const Array& out, const Array& mean,
    const Array& reciprocal) {
  const int64_t batch = x.sizes[1], width = x.sizes[2];
  const Chunks chunks(x.sizes[0]);
  with_type(x.type, [&](auto type) {
    using T = decltype(type);
    using A = Accumulator<T>;
    const Tokens<const T> from(x);
    const Tokens<T> to(out);
    for_each_chunk<A>(batch, chunks, 3, width, [&](int64_t sample, int64_t chunk, auto scratch) {
      A *shift_row = scratch(0), *factor = scratch(1);
      sample_row<A>(shift, sample, width, 0, shift_row);
      sample_row<A>(scale, sample, width, 1, factor);
      for (int64_t token = chunks.begin(chunk); token < chunks.end(chunk); ++token) {
        const A* row = as_row(from.at(token, sample), from.value, width, scratch(2));
        const Moments<A> moments = moments_of(row, width, epsilon);
        write_normed(row, moments, factor, shift_row, width, to.at(token, sample));
        keep_moments(mean, reciprocal, token * batch + sample, moments);
      }
    });
  });
}

void modulated_norm_backward(
    const Array& d_out, const Array& x, const Array& scale, const Array& mean, const Array& reciprocal,
    const Array& d_x, const Array& d_shift, const Array& d_scale) {
  const int64_t batch = x.sizes[1], width = x.sizes[2];
  const Chunks chunks(x.sizes[0]);
  with_type(x.type, [&](auto type) {
    using T = decltype(type);
    using A = Accumulator<T>;
    const Tokens<const T> from(x), from_d_out(d_out);
    const Tokens<T> to(d_x);
    ColumnSums<A> d_shifts(batch, chunks, width), d_scales(batch, chunks, width);
    for_each_chunk<A>(batch, chunks, 3, width, [&](int64_t sample, int64_t chunk, auto scratch) {
      A* factor = scratch(0);
      sample_row<A>(scale, sample, width, 1, factor);
      for (int64_t token = chunks.begin(chunk); token < chunks.end(chunk); ++token) {
        const int64_t at = token * batch + sample;
        NormRow<A> norm{as_row(from.at(token, sample), from.value, width, scratch(1)),
                        as_row(from_d_out.at(token, sample), from_d_out.value, width, scratch(2)),
                        factor,
                        {mean.at<A>()[at], reciprocal.at<A>()[at]}};
        norm.reduce(width, d_shifts.of(sample, chunk), d_scales.of(sample, chunk));
        T* d_row = to.at(token, sample);
        sweep<A>(width, [&](int64_t at, auto part) { store(d_row + at, norm.gradient(at, part), part); });
      }
    });
    d_shifts.finish(d_shift);
    d_scales.finish(d_scale);
  });
}

void gated_residual(const Array& x, const Array& gate, const Array& update, const Array& out) {
  const int64_t batch = x.sizes[1], width = x.sizes[2];
  const Chunks chunks(x.sizes[0]);
  with_type(x.type, [&](auto type) {
    using T = decltype(type);
    using A = Accumulator<T>;
    const Tokens<const T> from(x), from_update(update);
    const Tokens<T> to(out);
    for_each_chunk<A>(batch, chunks, 3, width, [&](int64_t sample, int64_t chunk, auto scratch) {
      A* gate_row = scratch(0);
      sample_row<A>(gate, sample, width, 0, gate_row);
      for (int64_t token = chunks.begin(chunk); token < chunks.end(chunk); ++token) {
        const A* row = as_row(from.at(token, sample), from.value, width, scratch(1));
        const A* more = as_row(from_update.at(token, sample), from_update.value, width, scratch(2));
        T* out_row = to.at(token, sample);
        sweep<A>(width, [&](int64_t at, auto part) {
          store(out_row + at, multiply_add(load(gate_row + at, part), load(more + at, part), load(row + at, part)),
                part);
        });
      }
    });
  });
}

void gated_residual_backward(
    const Array& d_out, const Array& gate, const Array& update, const Array& d_gate, const Array& d_update) {
  const int64_t batch = update.sizes[1], width = update.sizes[2];
  const Chunks chunks(update.sizes[0]);
  with_type(update.type, [&](auto type) {
    using T = decltype(type);
    using A = Accumulator<T>;
    const Tokens<const T> from_update(update), from_d_out(d_out);
    const Tokens<T> to(d_update);
    ColumnSums<A> d_gates(batch, chunks, width);
    for_each_chunk<A>(batch, chunks, 3, width, [&](int64_t sample, int64_t chunk, auto scratch) {
      A *gate_row = scratch(0), *sums = d_gates.of(sample, chunk);
      sample_row<A>(gate, sample, width, 0, gate_row);
      for (int64_t token = chunks.begin(chunk); token < chunks.end(chunk); ++token) {
        const A* gradient = as_row(from_d_out.at(token, sample), from_d_out.value, width, scratch(1));
        const A* row = as_row(from_update.at(token, sample), from_update.value, width, scratch(2));
        T* d_row = to.at(token, sample);
        sweep<A>(width, [&](int64_t at, auto part) {
          const Vector<A> values = load(gradient + at, part);
          store(d_row + at, values * load(gate_row + at, part), part);
          store(sums + at, multiply_add(values, load(row + at, part), load(sums + at, part)), part);
        });
      }
    });
    d_gates.finish(d_gate);
  });
}

void gated_residual_norm(
    const Array& x, const Array& gate, const Array& update, const Array& shift, const Array& scale, double epsilon,
    const Array& out, const Array& normed, const Array& mean, const Array& reciprocal) {
  const int64_t batch = x.sizes[1], width = x.sizes[2];
  const Chunks chunks(x.sizes[0]);
  with_type(x.type, [&](auto type) {
    using T = decltype(type);
    using A = Accumulator<T>;
    const Tokens<const T> from(x), from_update(update);
    const Tokens<T> to(out), to_normed(normed);
    for_each_chunk<A>(batch, chunks, 5, width, [&](int64_t sample, int64_t chunk, auto scratch) {
      A *gate_row = scratch(0), *shift_row = scratch(1), *factor = scratch(2);
      sample_row<A>(gate, sample, width, 0, gate_row);
      sample_row<A>(shift, sample, width, 0, shift_row);
      sample_row<A>(scale, sample, width, 1, factor);
      for (int64_t token = chunks.begin(chunk); token < chunks.end(chunk); ++token) {
        const A* row = as_row(from.at(token, sample), from.value, width, scratch(3));
        const A* more = as_row(from_update.at(token, sample), from_update.value, width, scratch(4));
        T* out_row = to.at(token, sample);
        sweep<A>(width, [&](int64_t at, auto part) {
          store(out_row + at, multiply_add(load(gate_row + at, part), load(more + at, part), load(row + at, part)),
                part);
        });
        // The norm sees the sum as it is returned, rounded.
        const A* rounded = as_row<T, A>(out_row, 1, width, scratch(3));
        const Moments<A> moments = moments_of(rounded, width, epsilon);
        write_normed(rounded, moments, factor, shift_row, width, to_normed.at(token, sample));
        keep_moments(mean, reciprocal, token * batch + sample, moments);
      }
    });
  });
}

void gated_residual_norm_backward(const ResidualNormGradients& given) {
  const int64_t batch = given.out.sizes[1], width = given.out.sizes[2];
  const Chunks chunks(given.out.sizes[0]);
  with_type(given.out.type, [&](auto type) {
    using T = decltype(type);
    using A = Accumulator<T>;
    const Tokens<const T> from(given.out), from_update(given.update), from_normed(given.d_normed);
    const Tokens<const T> from_d_out(given.d_out);
    const Tokens<T> to(given.d_x), to_update(given.d_update);
    ColumnSums<A> d_gates(batch, chunks, width), d_shifts(batch, chunks, width), d_scales(batch, chunks, width);
    for_each_chunk<A>(batch, chunks, 6, width, [&](int64_t sample, int64_t chunk, auto scratch) {
      A *gate_row = scratch(0), *factor = scratch(1), *d_gate = d_gates.of(sample, chunk);
      sample_row<A>(given.gate, sample, width, 0, gate_row);
      sample_row<A>(given.scale, sample, width, 1, factor);
      for (int64_t token = chunks.begin(chunk); token < chunks.end(chunk); ++token) {
        const int64_t at = token * batch + sample;
        NormRow<A> norm{as_row(from.at(token, sample), from.value, width, scratch(2)),
                        as_row(from_normed.at(token, sample), from_normed.value, width, scratch(3)),
                        factor,
                        {given.mean.at<A>()[at], given.reciprocal.at<A>()[at]}};
        norm.reduce(width, d_shifts.of(sample, chunk), d_scales.of(sample, chunk));
        const A* update = as_row(from_update.at(token, sample), from_update.value, width, scratch(4));
        const A* passing = from_d_out.data
            ? as_row(from_d_out.at(token, sample), from_d_out.value, width, scratch(5))
            : nullptr;
        T *d_row = to.at(token, sample), *d_update_row = to_update.at(token, sample);
        sweep<A>(width, [&](int64_t at, auto part) {
          Vector<A> gradient = norm.gradient(at, part);
          if (passing) gradient += load(passing + at, part);
          store(d_row + at, gradient, part);
          store(d_update_row + at, gradient * load(gate_row + at, part), part);
          store(d_gate + at, multiply_add(gradient, load(update + at, part), load(d_gate + at, part)), part);
        });
      }
    });
    d_gates.finish(given.d_gate);
    d_shifts.finish(given.d_shift);
    d_scales.finish(given.d_scale);
  });
}

}  // namespace contentv::CONTENTV_INSTRUCTIONS
