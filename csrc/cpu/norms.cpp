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
template <typename A>
void write_normed(const A* row, Moments<A> moments, const A* factor, const A* shift, int64_t width, A* to) {
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

/// The mean and the reciprocal deviation of every row, contiguous.
template <typename A>
void keep_moments(const Array& mean, const Array& reciprocal, int64_t row, Moments<A> moments) {
  Writer<A>(mean).put(row, moments.mean);
  Writer<A>(reciprocal).put(row, moments.reciprocal);
}

template <typename A>
Moments<A> kept_moments(const Array& mean, const Array& reciprocal, int64_t row) {
  return {Reader<A>(mean).value(row), Reader<A>(reciprocal).value(row)};
}

/// The row of a sample, [B, D] of any floating type and strides, plus `added`.
template <typename A>
A* sample_row(const Array& array, int64_t sample, int64_t width, A added, A* to) {
  const Reader<A> reader(array);
  reader.copy(reader.at(sample), width, to);
  for (int64_t index = 0; index < width; ++index) to[index] += added;
  return to;
}

/// out = row + gate * more
template <typename A>
void add_gated(const A* row, const A* gate, const A* more, int64_t width, A* out) {
  sweep<A>(width, [&](int64_t at, auto part) {
    store(out + at, multiply_add(load(gate + at, part), load(more + at, part), load(row + at, part)), part);
  });
}

}  // namespace

void modulated_norm(
    const Array& x, const Array& shift, const Array& scale, double epsilon, const Array& out, const Array& mean,
    const Array& reciprocal) {
  const int64_t batch = x.sizes[1], width = x.sizes[2];
  const Chunks chunks(x.sizes[0]);
  with_accumulator(x.type, [&](auto zero) {
    using A = decltype(zero);
    const Reader<A> from(x);
    const Writer<A> to(out);
    for_each_chunk<A>(batch, chunks, 4, width, [&](int64_t sample, int64_t chunk, auto scratch) {
      const A* shift_row = sample_row<A>(shift, sample, width, 0, scratch(0));
      const A* factor = sample_row<A>(scale, sample, width, 1, scratch(1));
      for (int64_t token = chunks.begin(chunk); token < chunks.end(chunk); ++token) {
        const A* row = from.row(from.at(token, sample), width, scratch(2));
        const Moments<A> moments = moments_of(row, width, epsilon);
        A* out_row = to.open(to.at(token, sample), scratch(3));
        write_normed(row, moments, factor, shift_row, width, out_row);
        to.close(to.at(token, sample), width, out_row);
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
  with_accumulator(x.type, [&](auto zero) {
    using A = decltype(zero);
    const Reader<A> from(x), from_d_out(d_out);
    const Writer<A> to(d_x);
    ColumnSums<A> d_shifts(batch, chunks, width), d_scales(batch, chunks, width);
    for_each_chunk<A>(batch, chunks, 4, width, [&](int64_t sample, int64_t chunk, auto scratch) {
      const A* factor = sample_row<A>(scale, sample, width, 1, scratch(0));
      for (int64_t token = chunks.begin(chunk); token < chunks.end(chunk); ++token) {
        NormRow<A> norm{from.row(from.at(token, sample), width, scratch(1)),
                        from_d_out.row(from_d_out.at(token, sample), width, scratch(2)), factor,
                        kept_moments<A>(mean, reciprocal, token * batch + sample)};
        norm.reduce(width, d_shifts.of(sample, chunk), d_scales.of(sample, chunk));
        A* d_row = to.open(to.at(token, sample), scratch(3));
        sweep<A>(width, [&](int64_t at, auto part) { store(d_row + at, norm.gradient(at, part), part); });
        to.close(to.at(token, sample), width, d_row);
      }
    });
    d_shifts.finish(d_shift);
    d_scales.finish(d_scale);
  });
}

void gated_residual(const Array& x, const Array& gate, const Array& update, const Array& out) {
  const int64_t batch = x.sizes[1], width = x.sizes[2];
  const Chunks chunks(x.sizes[0]);
  with_accumulator(x.type, [&](auto zero) {
    using A = decltype(zero);
    const Reader<A> from(x), from_update(update);
    const Writer<A> to(out);
    for_each_chunk<A>(batch, chunks, 4, width, [&](int64_t sample, int64_t chunk, auto scratch) {
      const A* gate_row = sample_row<A>(gate, sample, width, 0, scratch(0));
      for (int64_t token = chunks.begin(chunk); token < chunks.end(chunk); ++token) {
        const A* row = from.row(from.at(token, sample), width, scratch(1));
        const A* more = from_update.row(from_update.at(token, sample), width, scratch(2));
        A* out_row = to.open(to.at(token, sample), scratch(3));
        add_gated(row, gate_row, more, width, out_row);
        to.close(to.at(token, sample), width, out_row);
      }
    });
  });
}

void gated_residual_backward(
    const Array& d_out, const Array& gate, const Array& update, const Array& d_gate, const Array& d_update) {
  const int64_t batch = update.sizes[1], width = update.sizes[2];
  const Chunks chunks(update.sizes[0]);
  with_accumulator(update.type, [&](auto zero) {
    using A = decltype(zero);
    const Reader<A> from_update(update), from_d_out(d_out);
    const Writer<A> to(d_update);
    ColumnSums<A> d_gates(batch, chunks, width);
    for_each_chunk<A>(batch, chunks, 4, width, [&](int64_t sample, int64_t chunk, auto scratch) {
      const A* gate_row = sample_row<A>(gate, sample, width, 0, scratch(0));
      A* sums = d_gates.of(sample, chunk);
      for (int64_t token = chunks.begin(chunk); token < chunks.end(chunk); ++token) {
        const A* gradient = from_d_out.row(from_d_out.at(token, sample), width, scratch(1));
        const A* row = from_update.row(from_update.at(token, sample), width, scratch(2));
        A* d_row = to.open(to.at(token, sample), scratch(3));
        sweep<A>(width, [&](int64_t at, auto part) {
          const Vector<A> values = load(gradient + at, part);
          store(sums + at, multiply_add(values, load(row + at, part), load(sums + at, part)), part);
          store(d_row + at, values * load(gate_row + at, part), part);
        });
        to.close(to.at(token, sample), width, d_row);
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
  with_accumulator(x.type, [&](auto zero) {
    using A = decltype(zero);
    const Reader<A> from(x), from_update(update), from_out(out);
    const Writer<A> to(out), to_normed(normed);
    for_each_chunk<A>(batch, chunks, 6, width, [&](int64_t sample, int64_t chunk, auto scratch) {
      const A* gate_row = sample_row<A>(gate, sample, width, 0, scratch(0));
      const A* shift_row = sample_row<A>(shift, sample, width, 0, scratch(1));
      const A* factor = sample_row<A>(scale, sample, width, 1, scratch(2));
      for (int64_t token = chunks.begin(chunk); token < chunks.end(chunk); ++token) {
        const int64_t place = to.at(token, sample);
        const A* row = from.row(from.at(token, sample), width, scratch(3));
        const A* more = from_update.row(from_update.at(token, sample), width, scratch(4));
        A* out_row = to.open(place, scratch(5));
        add_gated(row, gate_row, more, width, out_row);
        to.close(place, width, out_row);
        // The norm sees the sum as it is returned, rounded.
        const A* rounded = from_out.row(place, width, scratch(3));
        const Moments<A> moments = moments_of(rounded, width, epsilon);
        A* normed_row = to_normed.open(place, scratch(4));
        write_normed(rounded, moments, factor, shift_row, width, normed_row);
        to_normed.close(place, width, normed_row);
        keep_moments(mean, reciprocal, token * batch + sample, moments);
      }
    });
  });
}

void gated_residual_norm_backward(const ResidualNormGradients& given) {
  const int64_t batch = given.out.sizes[1], width = given.out.sizes[2];
  const Chunks chunks(given.out.sizes[0]);
  with_accumulator(given.out.type, [&](auto zero) {
    using A = decltype(zero);
    const Reader<A> from(given.out), from_update(given.update), from_normed(given.d_normed), from_d_out(given.d_out);
    const Writer<A> to(given.d_x), to_update(given.d_update);
    ColumnSums<A> d_gates(batch, chunks, width), d_shifts(batch, chunks, width), d_scales(batch, chunks, width);
    for_each_chunk<A>(batch, chunks, 8, width, [&](int64_t sample, int64_t chunk, auto scratch) {
      const A* gate_row = sample_row<A>(given.gate, sample, width, 0, scratch(0));
      const A* factor = sample_row<A>(given.scale, sample, width, 1, scratch(1));
      A* d_gate = d_gates.of(sample, chunk);
      for (int64_t token = chunks.begin(chunk); token < chunks.end(chunk); ++token) {
        const int64_t place = to.at(token, sample);
        NormRow<A> norm{from.row(from.at(token, sample), width, scratch(2)),
                        from_normed.row(from_normed.at(token, sample), width, scratch(3)), factor,
                        kept_moments<A>(given.mean, given.reciprocal, token * batch + sample)};
        norm.reduce(width, d_shifts.of(sample, chunk), d_scales.of(sample, chunk));
        const A* update = from_update.row(from_update.at(token, sample), width, scratch(4));
        const A* passing = nullptr;
        if (from_d_out.is_there()) passing = from_d_out.row(from_d_out.at(token, sample), width, scratch(5));
        A *d_row = to.open(place, scratch(6)), *d_update_row = to_update.open(place, scratch(7));
        sweep<A>(width, [&](int64_t at, auto part) {
          Vector<A> gradient = norm.gradient(at, part);
          if (passing) gradient += load(passing + at, part);
          store(d_gate + at, multiply_add(gradient, load(update + at, part), load(d_gate + at, part)), part);
          store(d_row + at, gradient, part);
          store(d_update_row + at, gradient * load(gate_row + at, part), part);
        });
        to.close(place, width, d_row);
        to_update.close(place, width, d_update_row);
      }
    });
    d_gates.finish(given.d_gate);
    d_shifts.finish(given.d_shift);
    d_scales.finish(given.d_scale);
  });
}

}  // namespace contentv::CONTENTV_INSTRUCTIONS
