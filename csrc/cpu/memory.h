// Rows of tensors as the kernels compute with them: contiguous floats (doubles for float64 tensors).
//
// A kernel is written for one type. A row that lies in memory so is read and written in place; every other one, in low
// precision or strided, passes through scratch memory.
#pragma once

#include "simd.h"

namespace contentv::CONTENTV_INSTRUCTIONS {

/// Calls body(A()) with what is computed in for values of `type`.
template <typename Body>
inline void with_accumulator(Type type, const Body& body) {
  if (type == Type::float64) body(double());
  else body(float());
}

template <typename A>
constexpr Type TYPE = sizeof(A) == 4 ? Type::float32 : Type::float64;

constexpr int64_t size_of(Type type) {
  switch (type) {
    case Type::float32: return 4;
    case Type::float64: return 8;
    case Type::int64: return 8;
    default: return 2;
  }
}

/// `count` values, `stride` apart.
template <typename A>
void gather(const void* from, Type type, int64_t stride, int64_t count, A* to);

/// Rows of them, `from_row` and `to_row` apart.
template <typename A>
void gather_rows(
    const void* from, Type type, int64_t from_row, int64_t stride, int64_t rows, int64_t count, A* to, int64_t to_row);

/// `count` contiguous values, rounded.
template <typename A>
void scatter(const A* from, int64_t count, void* to, Type type);

/// A tensor that is read, row by row: a row is what the last axis holds. Offsets are counted in values.
template <typename A>
class Reader {
 public:
  explicit Reader(const Array& array) : array_(array) {}

  bool is_there() const { return array_.data != nullptr; }

  template <typename... Indices>
  int64_t at(Indices... indices) const {
    int64_t offset = 0, axis = 0;
    ((offset += indices * array_.strides[axis++]), ...);
    return offset;
  }

  /// The row at `offset`: where it lies, or in scratch.
  const A* row(int64_t offset, int64_t count, A* scratch) const {
    if (array_.type == TYPE<A> && stride() == 1) return static_cast<const A*>(array_.data) + offset;
    copy(offset, count, scratch);
    return scratch;
  }

  void copy(int64_t offset, int64_t count, A* to) const {
    gather(static_cast<const char*>(array_.data) + offset * size_of(array_.type), array_.type, stride(), count, to);
  }

  /// Rows that follow each other along the axis before the last.
  void copy_rows(int64_t offset, int64_t rows, int64_t count, A* to, int64_t to_row) const {
    const char* from = static_cast<const char*>(array_.data) + offset * size_of(array_.type);
    gather_rows(from, array_.type, array_.strides[array_.rank - 2], stride(), rows, count, to, to_row);
  }

  A value(int64_t offset) const {
    if (array_.type == TYPE<A>) return static_cast<const A*>(array_.data)[offset];
    A value;
    copy(offset, 1, &value);
    return value;
  }

 private:
  int64_t stride() const { return array_.rank ? array_.strides[array_.rank - 1] : 1; }

  Array array_;
};

/// A tensor that is written, row by row; its rows are contiguous.
template <typename A>
class Writer {
 public:
  explicit Writer(const Array& array) : array_(array) {}

  template <typename... Indices>
  int64_t at(Indices... indices) const {
    int64_t offset = 0, axis = 0;
    ((offset += indices * array_.strides[axis++]), ...);
    return offset;
  }

  /// Where to write the row at `offset`; `close` must follow.
  A* open(int64_t offset, A* scratch) const {
    return array_.type == TYPE<A> ? static_cast<A*>(array_.data) + offset : scratch;
  }

  void close(int64_t offset, int64_t count, const A* row) const {
    if (array_.type != TYPE<A>) scatter(row, count, place(offset), array_.type);
  }

  void write(int64_t offset, int64_t count, const A* row) const { scatter(row, count, place(offset), array_.type); }

  void put(int64_t offset, A value) const { write(offset, 1, &value); }

 private:
  void* place(int64_t offset) const { return static_cast<char*>(array_.data) + offset * size_of(array_.type); }

  Array array_;
};

}  // namespace contentv::CONTENTV_INSTRUCTIONS
