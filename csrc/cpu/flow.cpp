// Noise made on the spot on the path from data to it, and the loss of the velocity along that path.

#include "kernels.h"
#include "rows.h"

namespace contentv::CONTENTV_INSTRUCTIONS {
namespace {

using Floats = Vector<float>;
using Integers = Vectors<float>::Integers;

// --- Philox4x32-10, kernels/philox.py --------------------------------------------------------------------------------

/// High and low words of multiplier * word.
inline void multiply_words(uint32_t multiplier, Bits word, Bits& high, Bits& low) {
  uint32_t from[LANES<float>], above[LANES<float>];
  std::memcpy(from, &word, BYTES);
  for (int lane = 0; lane < LANES<float>; ++lane) {
    above[lane] = static_cast<uint32_t>((static_cast<uint64_t>(from[lane]) * multiplier) >> 32);
  }
  std::memcpy(&high, above, BYTES);
  low = word * multiplier;
}

struct Counter {
  uint32_t sample, step, seed_low, seed_high;
};

/// The first two words of counters (element, sample, step, stream 0: noise).
inline void philox(Bits element, const Counter& counter, Bits& first, Bits& second) {
  Bits word0 = element, word1 = Bits() + counter.sample, word2 = Bits() + counter.step, word3 = {};
  uint32_t key0 = counter.seed_low, key1 = counter.seed_high;
  for (int round = 0; round < 10; ++round, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u) {
    Bits high0, low0, high1, low1;
    multiply_words(0xD2511F53u, word0, high0, low0);
    multiply_words(0xCD9E8D57u, word2, high1, low1);
    word0 = high1 ^ word1 ^ key0, word2 = high0 ^ word3 ^ key1;
    word1 = low1, word3 = low0;
  }
  first = word0, second = word1;
}

/// Natural logarithm of positive normal values, within 1 ULP: ln 2^e + ln(1 + f), f in [sqrt(1/2) - 1, sqrt(2) - 1].
inline Floats logarithm(Floats x) {
  const uint32_t root = 0x3f3504f3u;  // sqrt(1/2)
  const Integers shifted = (Integers)((Bits)x - root);
  const Floats exponent = __builtin_convertvector(shifted >> 23, Floats);
  const Floats f = (Floats)(((Bits)shifted & 0x7fffffu) + root) - 1.0f;
  // (ln(1 + f) - f + f^2 / 2) / f^3, fitted for the smallest relative error of the logarithm: 1e-9.
  const float series[] = {0.06746642f, -0.11675655f, 0.118881635f, -0.12405588f, 0.14219552f,
                          -0.16667996f, 0.20002119f, -0.25000009f, 0.33333313f};
  Floats rest = {};
  for (const float term : series) rest = multiply_add(rest, f, broadcast(term));
  const Floats square = f * f;
  // ln 2 in two parts: the product with the first is exact.
  rest = multiply_add(rest, square * f, exponent * -2.1219444e-4f);
  rest = multiply_add(square, broadcast(-0.5f), rest);
  return multiply_add(exponent, broadcast(0.693359375f), f + rest);
}

/// Cosine on [0, 2 pi], within 1 ULP even beside its zeros: pi / 2 in three parts, the first two products exact.
inline Floats cosine(Floats angle) {
  const Floats quarter = nearest(angle * 0.63661977f);
  Floats rest = angle - quarter * 1.5703125f;
  rest = rest - quarter * 4.837512969970703e-4f;
  rest = rest - quarter * 7.549790e-8f;
  const Floats square = rest * rest;
  Floats sine = multiply_add(square, broadcast(-1.9515282e-4f), broadcast(0.0083321603f));
  sine = multiply_add(multiply_add(sine, square, broadcast(-0.16666655f)), square * rest, rest);
  Floats cosine = multiply_add(square, broadcast(2.4433157e-5f), broadcast(-0.0013887316f));
  cosine = multiply_add(cosine, square, broadcast(0.041666646f));
  cosine = multiply_add(cosine, square * square, multiply_add(square, broadcast(-0.5f), broadcast(1.0f)));
  const Bits turns = (Bits)__builtin_convertvector(quarter, Integers);
  const Floats value = (turns & 1u) == 1u ? sine : cosine;
  // Quarters 1 and 2 are negative.
  return (Floats)((Bits)value ^ (((turns + 1u) & 2u) << 30));
}

inline Floats normal(Bits first, Bits second) {
  const Floats u1 = __builtin_convertvector((Integers)((first >> 8) + 1u), Floats) * 0x1p-24f;
  const Floats u2 = __builtin_convertvector((Integers)(second >> 8), Floats) * 0x1p-24f;
  return square_root(logarithm(u1) * -2.0f) * cosine(u2 * 6.2831855f);
}

/// Noise of `count` elements of a sample, from `first` on.
void fill_noise(int64_t first, int64_t count, const Counter& counter, float* to) {
  Bits lanes;
  for (int lane = 0; lane < LANES<float>; ++lane) lanes[lane] = lane;
  sweep<float>(count, [&](int64_t at, auto part) {
    Bits word0, word1;
    philox(lanes + static_cast<uint32_t>(first + at), counter, word0, word1);
    store(to + at, normal(word0, word1), part);
  });
}

// --- Patches ---------------------------------------------------------------------------------------------------------

/// A latent [B, C, F, Y, X] seen as [B, F, Y, X, C].
class ChannelsLast {
 public:
  explicit ChannelsLast(const Array& latent) : array_(latent) {
    const int order[] = {0, 2, 3, 4, 1};
    for (int axis = 0; axis < 5; ++axis) {
      sizes_[axis] = latent.sizes[order[axis]];
      strides_[axis] = latent.strides[order[axis]];
    }
    array_.sizes = sizes_, array_.strides = strides_;
  }
  ChannelsLast(const ChannelsLast&) = delete;

  const Array& array() const { return array_; }

 private:
  Array array_;
  int64_t sizes_[5], strides_[5];
};

/// What the velocity of a token should be: noise - x0 of its patch, (p q c).
template <typename A>
class Target {
 public:
  Target(const ChannelsLast& x0, const ChannelsLast& noise)
      : x0_(x0.array()),
        noise_(noise.array()),
        rows_(x0.array().sizes[2] / 2),
        columns_(x0.array().sizes[3] / 2),
        channels_(x0.array().sizes[4]) {}

  void fill(int64_t sample, int64_t token, A* to, A* scratch) const {
    const int64_t x = token % columns_ * 2, y = token / columns_ % rows_ * 2, frame = token / columns_ / rows_;
    for (int64_t p = 0; p < 2; ++p) {
      for (int64_t q = 0; q < 2; ++q, to += channels_) {
        noise_.copy(noise_.at(sample, frame, y + p, x + q), channels_, to);
        x0_.copy(x0_.at(sample, frame, y + p, x + q), channels_, scratch);
        for (int64_t channel = 0; channel < channels_; ++channel) to[channel] -= scratch[channel];
      }
    }
  }

 private:
  Reader<A> x0_, noise_;
  int64_t rows_, columns_, channels_;
};

}  // namespace

void flow_noise(
    const Array& x0, const Array& sigma, const Array& sample, int64_t step, int64_t seed_low, int64_t seed_high,
    const Array& x_t, const Array& noise) {
  const int64_t batch = x0.sizes[0], columns = x0.sizes[4], rows = x0.count() / (batch * columns);
  const int64_t values = rows * columns;
  const Chunks chunks(rows);
  with_accumulator(x0.type, [&](auto zero) {
    using A = decltype(zero);
    const Reader<A> from(x0), levels(sigma), rounded(noise);
    const Writer<A> to(x_t), to_noise(noise);
    for_each_chunk<A>(batch, chunks, 4, chunks.size * columns, [&](int64_t which, int64_t chunk, auto scratch) {
      const int64_t first = chunks.begin(chunk) * columns, count = chunks.end(chunk) * columns - first;
      const int64_t place = which * values + first;
      const Counter counter{static_cast<uint32_t>(static_cast<const int64_t*>(sample.data)[which * sample.strides[0]]),
                            static_cast<uint32_t>(step), static_cast<uint32_t>(seed_low),
                            static_cast<uint32_t>(seed_high)};
      float* normals = reinterpret_cast<float*>(scratch(0));
      fill_noise(first, count, counter, normals);
      // Rounded to x0's dtype first: x_t and the target speak of the same noise.
      A* wide = scratch(1);
      for (int64_t index = 0; index < count; ++index) wide[index] = normals[index];
      to_noise.write(place, count, wide);
      const A* noise_row = rounded.row(place, count, wide);
      A* latent = scratch(2);
      for (int64_t row = chunks.begin(chunk); row < chunks.end(chunk); ++row) {
        const int64_t y = row % x0.sizes[3], frame = row / x0.sizes[3] % x0.sizes[2];
        const int64_t channel = row / x0.sizes[3] / x0.sizes[2];
        from.copy(from.at(which, channel, frame, y), columns, latent + (row - chunks.begin(chunk)) * columns);
      }
      const A level = levels.value(levels.at(which));
      A* out = to.open(place, scratch(3));
      sweep<A>(count, [&](int64_t at, auto part) {
        store(out + at, load(latent + at, part) * (1 - level) + load(noise_row + at, part) * level, part);
      });
      to.close(place, count, out);
    });
  });
}

void flow_loss(
    const Array& velocity, const Array& x0, const Array& noise, const Array& weight, int64_t first_token,
    const Array& loss) {
  const int64_t batch = velocity.sizes[1], width = velocity.sizes[2];
  const Chunks chunks(velocity.sizes[0]);
  const ChannelsLast latent(x0), noised(noise);
  with_accumulator(velocity.type, [&](auto zero) {
    using A = decltype(zero);
    const Reader<A> from(velocity), weights(weight);
    const Target<A> target(latent, noised);
    ColumnSums<A> sums(batch, chunks, 1);
    for_each_chunk<A>(batch, chunks, 3, width, [&](int64_t sample, int64_t chunk, auto scratch) {
      A total = 0;
      for (int64_t token = chunks.begin(chunk); token < chunks.end(chunk); ++token) {
        target.fill(sample, first_token + token, scratch(0), scratch(1));
        const A *wanted = scratch(0), *row = from.row(from.at(token, sample), width, scratch(2));
        Vector<A> squares = {};
        sweep<A>(width, [&](int64_t at, auto part) {
          const Vector<A> error = load(row + at, part) - load(wanted + at, part);
          squares = multiply_add(error, error, squares);
        });
        total += sum_of(squares);
      }
      *sums.of(sample, chunk) = total * (weights.value(weights.at(sample)) / static_cast<A>(x0.count() / batch));
    });
    sums.finish(loss);
  });
}

void flow_loss_backward(
    const Array& d_loss, const Array& velocity, const Array& x0, const Array& noise, const Array& weight,
    int64_t first_token, const Array& d_velocity) {
  const int64_t batch = velocity.sizes[1], width = velocity.sizes[2];
  const Chunks chunks(velocity.sizes[0]);
  const ChannelsLast latent(x0), noised(noise);
  with_accumulator(velocity.type, [&](auto zero) {
    using A = decltype(zero);
    const Reader<A> from(velocity), weights(weight), from_d_loss(d_loss);
    const Writer<A> to(d_velocity);
    const Target<A> target(latent, noised);
    for_each_chunk<A>(batch, chunks, 4, width, [&](int64_t sample, int64_t chunk, auto scratch) {
      const A share = weights.value(weights.at(sample)) / static_cast<A>(x0.count() / batch);
      const Vector<A> factor = broadcast(2 * share * from_d_loss.value(from_d_loss.at(sample)));
      for (int64_t token = chunks.begin(chunk); token < chunks.end(chunk); ++token) {
        target.fill(sample, first_token + token, scratch(0), scratch(1));
        const A *wanted = scratch(0), *row = from.row(from.at(token, sample), width, scratch(2));
        const int64_t place = to.at(token, sample);
        A* d_row = to.open(place, scratch(3));
        sweep<A>(width, [&](int64_t at, auto part) {
          store(d_row + at, factor * (load(row + at, part) - load(wanted + at, part)), part);
        });
        to.close(place, width, d_row);
      }
    });
  });
}

}  // namespace contentv::CONTENTV_INSTRUCTIONS
