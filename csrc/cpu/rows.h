// Rows of tokens [S, B, D] with a row of the sample, [B, D], beside them; and sums over S that any number of threads
// adds in the same order.
#pragma once

#include <memory>

#include "simd.h"

namespace contentv::CONTENTV_INSTRUCTIONS {

/// A row as contiguous values of type A: in place where it is that already, else copied to `scratch`.
template <typename T, typename A>
inline const A* as_row(const T* from, int64_t stride, int64_t count, A* scratch) {
  if constexpr (sizeof(T) == sizeof(A)) {
    if (stride == 1) return reinterpret_cast<const A*>(from);
  }
  gather(from, stride, count, scratch);
  return scratch;
}

/// [S, B, D] of any strides.
template <typename T>
struct Tokens {
  T* data = nullptr;
  int64_t token = 0, sample = 0, value = 0;

  explicit Tokens(const Array& array) {
    if (!array.data) return;
    data = array.at<T>();
    token = array.strides[0], sample = array.strides[1], value = array.strides[2];
  }

  T* at(int64_t index, int64_t which) const { return data + index * token + which * sample; }
};

/// Row `sample` of a [B, D] array of any floating type and strides, plus `added`.
template <typename A>
inline void sample_row(const Array& array, int64_t sample, int64_t width, A added, A* to) {
  with_type(array.type, [&](auto type) {
    gather(array.at<const decltype(type)>() + sample * array.strides[0], array.strides[1], width, to);
  });
  for (int64_t index = 0; index < width; ++index) to[index] += added;
}

/// How rows are shared out: by their number alone, so that sums over them have one order.
struct Chunks {
  int64_t rows, size, count;

  explicit Chunks(int64_t rows) : rows(rows) {
    const int64_t most = 64, least_rows = 16;
    size = (rows + most - 1) / most;
    if (size < least_rows) size = least_rows;
    count = (rows + size - 1) / size;
  }

  int64_t begin(int64_t chunk) const { return chunk * size; }
  int64_t end(int64_t chunk) const { return begin(chunk) + size < rows ? begin(chunk) + size : rows; }
};

/// One row of sums for each group and chunk of rows, added up at the end chunk by chunk.
template <typename A>
class ColumnSums {
 public:
  ColumnSums(int64_t groups, const Chunks& chunks, int64_t width)
      : groups_(groups), chunks_(chunks.count), width_(width), sums_(new A[groups * chunks.count * width]()) {}

  A* of(int64_t group, int64_t chunk) { return sums_.get() + (group * chunks_ + chunk) * width_; }

  /// to: contiguous [groups, width], of any floating type.
  void finish(const Array& to) {
    with_type(to.type, [&](auto type) {
      using T = decltype(type);
      in_parallel(groups_, 0, [&](int64_t group, char*) { finish_one(group, to.at<T>() + group * width_); });
    });
  }

 private:
  template <typename T>
  void finish_one(int64_t group, T* to) {
    A* total = of(group, 0);
    for (int64_t chunk = 1; chunk < chunks_; ++chunk) {
      const A* more = of(group, chunk);
      for (int64_t index = 0; index < width_; ++index) total[index] += more[index];
    }
    for (int64_t index = 0; index < width_; ++index) {
      store_value(to + index, static_cast<Accumulator<T>>(total[index]));
    }
  }

  int64_t groups_, chunks_, width_;
  std::unique_ptr<A[]> sums_;
};

}  // namespace contentv::CONTENTV_INSTRUCTIONS
