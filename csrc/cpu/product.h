// A matrix product of any strides: both factors are packed into panels that a tile of the output reads from one end to
// the other, and blocks of tiles are shared out among the threads. A block packs what it needs for itself, so that its
// panels lie in its own core's cache: a factor packed for all would be read from the cache that cores share, or from
// memory. What a panel and a tile are is the instruction set's: product.cpp, product_amx.cpp.
//
// Scheme: Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, ACM TOMS 34(3), 2008.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace contentv::CONTENTV_INSTRUCTIONS {

/// One factor as it is packed: `count` indices of the output (rows of left, columns of right) along `index`, and the
/// depth that is summed over along `depth`; strides are counted in values.
template <typename A>
struct Factor {
  const A* data;
  int64_t count, index, depth;

  Factor from(int64_t first_index, int64_t first_depth) const {
    return {data + first_index * index + first_depth * depth, count - first_index, index, depth};
  }
};

/// The output, and what a tile of it starts from: zero, the bias, or what is there.
template <typename A>
struct Output {
  A* data;
  int64_t row;
  const A* bias;
  bool add;
};

inline int64_t pieces(int64_t total, int64_t size) { return (total + size - 1) / size; }

/// A factor that lies in memory as the type it is multiplied in: rows of left, columns of right.
template <typename A>
Factor<A> factor_of(const Array& array, int index_axis) {
  const int64_t* strides = array.strides;
  return {static_cast<const A*>(array.data), array.sizes[index_axis], strides[index_axis], strides[1 - index_axis]};
}

}  // namespace contentv::CONTENTV_INSTRUCTIONS
