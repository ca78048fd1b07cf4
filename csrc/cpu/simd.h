// One vector of floats or doubles as wide as the instruction set allows, and the storage types it is loaded from.
//
// Every kernel source is compiled once for each instruction set, in a namespace of that set's name, so that no function
// of one can stand in for another's. GCC's and Clang's vector extensions spell the arithmetic; intrinsics stand only
// where they say something those cannot. Without any, the code is plain C++: it runs on arm64 too.
//
// Contraction is off (setup.py): a product and a sum round twice unless multiply_add says otherwise.
#pragma once

#include <cstring>
#include <type_traits>
#include <utility>
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "array.h"

#ifndef CONTENTV_INSTRUCTIONS
#define CONTENTV_INSTRUCTIONS baseline
#endif

namespace contentv::CONTENTV_INSTRUCTIONS {

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX2__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif

template <typename A>
constexpr int LANES = BYTES / sizeof(A);

template <typename A>
struct Vectors;
template <>
struct Vectors<float> {
  typedef float Values __attribute__((vector_size(BYTES)));
  typedef int32_t Integers __attribute__((vector_size(BYTES)));
  typedef uint32_t Bits __attribute__((vector_size(BYTES)));
};
template <>
struct Vectors<double> {
  typedef double Values __attribute__((vector_size(BYTES)));
  typedef int64_t Integers __attribute__((vector_size(BYTES)));
  typedef uint64_t Bits __attribute__((vector_size(BYTES)));
};
template <typename A>
using Vector = typename Vectors<A>::Values;
template <typename V>
using Lane = std::remove_reference_t<decltype(std::declval<V&>()[0])>;
using Bits = Vectors<float>::Bits;
typedef uint16_t HalfBits __attribute__((vector_size(BYTES / 2)));

struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

/// What is computed in: float for every storage type but double.
template <typename T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <typename T>
using Accumulator = typename AccumulatorOf<T>::type;

template <typename A>
inline Vector<A> broadcast(A value) {
  return value - Vector<A>();  // no instruction: x - 0 is x, where 0 + x is not, for -0
}

inline int64_t smaller(int64_t left, int64_t right) { return left < right ? left : right; }

// --- Parts of a vector -----------------------------------------------------------------------------------------------

/// All lanes of a vector; an int where a row ends inside one.
struct Whole {};

/// Calls body(offset, part) for the vectors that cover [0, width): part is Whole, or how many values the last one has.
template <typename A, typename Body>
inline void sweep(int64_t width, const Body& body) {
  int64_t offset = 0;
  for (; offset + LANES<A> <= width; offset += LANES<A>) body(offset, Whole());
  if (offset < width) body(offset, static_cast<int>(width - offset));
}

template <typename V>
inline V keep(V values, Whole) {
  return values;
}

/// The first `part` lanes; zeros in the others.
template <typename V>
inline V keep(V values, int part) {
  Lane<V> lanes[LANES<Lane<V>>];
  std::memcpy(lanes, &values, BYTES);
  for (int lane = part; lane < LANES<Lane<V>>; ++lane) lanes[lane] = 0;
  std::memcpy(&values, lanes, BYTES);
  return values;
}

// --- Memory ----------------------------------------------------------------------------------------------------------

inline Bits widen(const uint16_t* from) {
  HalfBits bits;
  std::memcpy(&bits, from, sizeof bits);
  return __builtin_convertvector(bits, Bits);
}

inline void narrow(uint16_t* to, Bits bits) {
  const HalfBits half = __builtin_convertvector(bits, HalfBits);
  std::memcpy(to, &half, sizeof half);
}

template <typename A>
inline Vector<A> load(const A* from, Whole = {}) {
  Vector<A> values;
  std::memcpy(&values, from, BYTES);
  return values;
}

inline Vector<float> load(const Bfloat16* from, Whole = {}) { return (Vector<float>)(widen(&from->bits) << 16); }

inline Vector<float> load(const Float16* from, Whole = {}) {
  const Bits bits = widen(&from->bits);
  const Bits magnitude = (bits & 0x7fffu) << 13;
  // Exponents are 112 apart; as a product this holds for subnormal values too.
  const Bits scaled = (Bits)((Vector<float>)magnitude * 0x1p112f);
  const Bits finite = (Bits)(magnitude < 0x7c00u << 13);
  return (Vector<float>)(scaled | (~finite & 0x7f800000u) | ((bits & 0x8000u) << 16));
}

template <typename T>
inline auto load(const T* from, int part) {
  T lanes[LANES<Accumulator<T>>] = {};
  std::memcpy(lanes, from, part * sizeof(T));
  return load(lanes);
}

template <typename A>
inline void store(A* to, Vector<A> values, Whole = {}) {
  std::memcpy(to, &values, BYTES);
}

inline void store(Bfloat16* to, Vector<float> values, Whole = {}) {
  const Bits bits = (Bits)values;
  const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Bits number = (Bits)(values == values);
  narrow(&to->bits, (rounded & number) | (~number & 0x7fc0u));
}

inline void store(Float16* to, Vector<float> values, Whole = {}) {
  const Bits sign = ((Bits)values >> 16) & 0x8000u;
  const Bits magnitude = (Bits)values & 0x7fffffffu;
  const Bits normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // 0.5's last bit is the smallest subnormal: the sum rounds to it.
  const Bits subnormal = (Bits)((Vector<float>)magnitude + 0.5f) - (Bits)broadcast(0.5f);
  const Bits is_small = (Bits)(magnitude < 0x38800000u);
  const Bits is_large = (Bits)(magnitude >= 0x47800000u);
  const Bits is_nan = (Bits)(magnitude > 0x7f800000u);
  const Bits finite = (subnormal & is_small) | (normal & ~is_small & ~is_large) | (0x7c00u & is_large);
  narrow(&to->bits, (finite & ~is_nan) | (0x7e00u & is_nan) | sign);
}

template <typename T>
inline void store(T* to, Vector<Accumulator<T>> values, int part) {
  T lanes[LANES<Accumulator<T>>];
  store(lanes, values);
  std::memcpy(to, lanes, part * sizeof(T));
}

// --- Arithmetic ------------------------------------------------------------------------------------------------------

/// left * right + sum, rounded once where the instruction set has it.
template <typename V>
inline V multiply_add(V left, V right, V sum) {
  [[maybe_unused]] constexpr bool single = sizeof(Lane<V>) == 4;
#if defined(__AVX512F__)
  if constexpr (single) return (V)_mm512_fmadd_ps((__m512)left, (__m512)right, (__m512)sum);
  else return (V)_mm512_fmadd_pd((__m512d)left, (__m512d)right, (__m512d)sum);
#elif defined(__AVX2__)
  if constexpr (single) return (V)_mm256_fmadd_ps((__m256)left, (__m256)right, (__m256)sum);
  else return (V)_mm256_fmadd_pd((__m256d)left, (__m256d)right, (__m256d)sum);
#elif defined(__aarch64__)
  if constexpr (single) return (V)vfmaq_f32((float32x4_t)sum, (float32x4_t)left, (float32x4_t)right);
  else return (V)vfmaq_f64((float64x2_t)sum, (float64x2_t)left, (float64x2_t)right);
#else
  return left * right + sum;
#endif
}

/// The larger one; `right` where either is no number.
template <typename V>
inline V larger(V left, V right) {
#if defined(__AVX512F__)
  if constexpr (sizeof(Lane<V>) == 4) return (V)_mm512_max_ps((__m512)left, (__m512)right);
#elif defined(__AVX2__)
  if constexpr (sizeof(Lane<V>) == 4) return (V)_mm256_max_ps((__m256)left, (__m256)right);
#endif
  return left > right ? left : right;
}

template <typename V>
inline V square_root(V values) {
#if defined(__AVX512F__)
  if constexpr (sizeof(Lane<V>) == 4) return (V)_mm512_sqrt_ps((__m512)values);
#elif defined(__AVX2__)
  if constexpr (sizeof(Lane<V>) == 4) return (V)_mm256_sqrt_ps((__m256)values);
#endif
  for (int lane = 0; lane < LANES<Lane<V>>; ++lane) {
    if constexpr (sizeof(Lane<V>) == 4) values[lane] = __builtin_sqrtf(values[lane]);
    else values[lane] = __builtin_sqrt(values[lane]);
  }
  return values;
}

/// The nearest integer, for values below 2^22.
inline Vector<float> nearest(Vector<float> values) {
#if defined(__AVX512F__)
  return (Vector<float>)_mm512_roundscale_ps((__m512)values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
  return (Vector<float>)_mm256_round_ps((__m256)values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  return (values + 0x1.8p23f) - 0x1.8p23f;
#endif
}

/// Sum of all lanes, in an order that does not depend on anything.
template <typename V>
inline Lane<V> sum_of(V values) {
  Lane<V> lanes[LANES<Lane<V>>];
  std::memcpy(lanes, &values, BYTES);
  for (int half = LANES<Lane<V>> / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

/// Lanes of two vectors, counted through both.
template <int... LANE, typename V>
inline V pick(V first, V second) {
#if defined(__clang__)
  return __builtin_shufflevector(first, second, LANE...);
#else
  return __builtin_shuffle(first, second, typename Vectors<Lane<V>>::Integers{LANE...});
#endif
}

/// Two rows, APART from each other, exchange the lanes that a transpose exchanges between them.
template <int APART, typename V, int... LANE>
inline void exchange(V& upper, V& lower, std::integer_sequence<int, LANE...>) {
  constexpr int count = sizeof...(LANE);
  const V above = upper;
  upper = pick<(LANE & APART ? count + LANE - APART : LANE)...>(above, lower);
  lower = pick<(LANE & APART ? count + LANE : LANE + APART)...>(above, lower);
}

/// A square of as many rows as lanes: blocks of 1, 2, 4 ... rows and lanes change places.
template <typename V, int COUNT, int APART = 1>
inline void transpose(V (&rows)[COUNT]) {
  static_assert(COUNT == LANES<Lane<V>>);
  if constexpr (APART < COUNT) {
#pragma GCC unroll 16
    for (int row = 0; row < COUNT; ++row) {
      if ((row & APART) == 0) exchange<APART>(rows[row], rows[row + APART], std::make_integer_sequence<int, COUNT>());
    }
    transpose<V, COUNT, 2 * APART>(rows);
  }
}

/// 2^x within 1 ULP; 0 below 2^-126, infinity from 2^128.
inline Vector<float> power_of_two(Vector<float> x) {
  const Vector<float> whole = nearest(x);
  const Vector<float> rest = x - whole;
  // (2^f - 1) / f on [-1/2, 1/2], fitted for the smallest relative error of 2^f: 2e-9.
  Vector<float> series = broadcast(0.00015353362f);
  series = multiply_add(series, rest, broadcast(0.0013398875f));
  series = multiply_add(series, rest, broadcast(0.009618437f));
  series = multiply_add(series, rest, broadcast(0.055503325f));
  series = multiply_add(series, rest, broadcast(0.24022648f));
  series = multiply_add(series, rest, broadcast(0.6931472f));
  series = multiply_add(series, rest, broadcast(1.0f));
#if defined(__AVX512F__)
  // Flushed as below, so that every instruction set gives the same values.
  const __mmask16 there = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
  return (Vector<float>)_mm512_maskz_scalef_ps(there, (__m512)series, (__m512)whole);
#else
  const Vectors<float>::Integers exponent = __builtin_convertvector(whole, Vectors<float>::Integers);
  const Vector<float> scaled = (Vector<float>)((Bits)series + ((Bits)exponent << 23));
  const Vector<float> low = x < -126.0f ? Vector<float>() : scaled;
  return x >= 128.0f ? broadcast(__builtin_inff()) : low;
#endif
}

inline Vector<double> power_of_two(Vector<double> x) {
  for (int lane = 0; lane < LANES<double>; ++lane) x[lane] = __builtin_exp2(x[lane]);
  return x;
}

template <typename A>
inline int64_t whole_vectors(int64_t count) {
  return (count + LANES<A> - 1) / LANES<A> * LANES<A>;
}

}  // namespace contentv::CONTENTV_INSTRUCTIONS
