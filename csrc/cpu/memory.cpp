// Conversions between storage types and what is computed in.

#include "memory.h"

namespace contentv::CONTENTV_INSTRUCTIONS {
namespace {

template <typename Body>
void with_type(Type type, const Body& body) {
  switch (type) {
    case Type::float32: return body(float());
    case Type::float64: return body(double());
    case Type::bfloat16: return body(Bfloat16());
    case Type::float16: return body(Float16());
    case Type::int64: return;
  }
}

template <typename T>
Accumulator<T> value_of(const T* from) {
  if constexpr (sizeof(T) == sizeof(Accumulator<T>)) return *from;
  else return load(from, 1)[0];
}

}  // namespace

template <typename A>
void gather_rows(
    const void* from, Type type, int64_t from_row, int64_t stride, int64_t rows, int64_t count, A* to, int64_t to_row) {
  with_type(type, [&](auto storage) {
    using T = decltype(storage);
    const T* values = static_cast<const T*>(from);
    for (int64_t row = 0; row < rows; ++row, values += from_row, to += to_row) {
      if constexpr (sizeof(A) == sizeof(Accumulator<T>)) {
        if (stride == 1) {
          sweep<A>(count, [&](int64_t at, auto part) { store(to + at, load(values + at, part), part); });
          continue;
        }
      }
      for (int64_t index = 0; index < count; ++index) to[index] = static_cast<A>(value_of(values + index * stride));
    }
  });
}

template <typename A>
void gather(const void* from, Type type, int64_t stride, int64_t count, A* to) {
  gather_rows(from, type, 0, stride, 1, count, to, 0);
}

template <typename A>
void scatter(const A* from, int64_t count, void* to, Type type) {
  with_type(type, [&](auto storage) {
    using T = decltype(storage);
    T* values = static_cast<T*>(to);
    if constexpr (sizeof(A) == sizeof(Accumulator<T>)) {
      sweep<A>(count, [&](int64_t at, auto part) { store(values + at, load(from + at, part), part); });
    } else {
      for (int64_t index = 0; index < count; ++index) {
        store(values + index, broadcast(static_cast<Accumulator<T>>(from[index])), 1);
      }
    }
  });
}

template void gather(const void*, Type, int64_t, int64_t, float*);
template void gather(const void*, Type, int64_t, int64_t, double*);
template void gather_rows(const void*, Type, int64_t, int64_t, int64_t, int64_t, float*, int64_t);
template void gather_rows(const void*, Type, int64_t, int64_t, int64_t, int64_t, double*, int64_t);
template void scatter(const float*, int64_t, void*, Type);
template void scatter(const double*, int64_t, void*, Type);

}  // namespace contentv::CONTENTV_INSTRUCTIONS
