// Rows shared out among threads, and sums over them that any number of threads adds in the same order.
#pragma once

#include <memory>

#include "memory.h"

namespace contentv::CONTENTV_INSTRUCTIONS {

/// How rows are shared out: by their number alone, so that sums over them have one order.
struct Chunks {
  int64_t rows, size, count;

  explicit Chunks(int64_t rows) : rows(rows) {
    const int64_t most = 64, least_rows = 16;
    size = (rows + most - 1) / most;
    if (size < least_rows) size = least_rows;
    count = rows > 0 ? (rows + size - 1) / size : 1;
  }

  int64_t begin(int64_t chunk) const { return chunk * size; }
  int64_t end(int64_t chunk) const { return begin(chunk) + size < rows ? begin(chunk) + size : rows; }
};

/// Calls body(group, chunk, scratch) for every group and chunk of its rows; scratch(i) is a row of `width` for i < rows.
template <typename A, typename Body>
void for_each_chunk(int64_t groups, const Chunks& chunks, int64_t rows, int64_t width, const Body& body) {
  const int64_t padded = whole_vectors<A>(width);
  in_parallel(groups * chunks.count, rows * padded * sizeof(A), [&](int64_t task, char* memory) {
    A* first = reinterpret_cast<A*>(memory);
    body(task / chunks.count, task % chunks.count, [&](int64_t row) { return first + row * padded; });
  });
}

/// One row of sums for each group and chunk of rows, added up at the end in pairs, pairs of pairs and so on: an error
/// then grows with the logarithm of their number.
template <typename A>
class ColumnSums {
 public:
  ColumnSums(int64_t groups, const Chunks& chunks, int64_t width)
      : groups_(groups), chunks_(chunks.count), width_(width), sums_(new A[groups * chunks.count * width]()) {}

  A* of(int64_t group, int64_t chunk) { return sums_.get() + (group * chunks_ + chunk) * width_; }

  /// to: contiguous [groups, width].
  void finish(const Array& to) {
    const Writer<A> writer(to);
    in_parallel(groups_, 0, [&](int64_t group, char*) {
      for (int64_t apart = 1; apart < chunks_; apart *= 2) {
        for (int64_t chunk = 0; chunk + apart < chunks_; chunk += 2 * apart) {
          A* total = of(group, chunk);
          const A* more = of(group, chunk + apart);
          sweep<A>(width_, [&](int64_t at, auto part) {
            store(total + at, load(total + at, part) + load(more + at, part), part);
          });
        }
      }
      writer.write(group * width_, width_, of(group, 0));
    });
  }

 private:
  int64_t groups_, chunks_, width_;
  std::unique_ptr<A[]> sums_;
};

}  // namespace contentv::CONTENTV_INSTRUCTIONS
