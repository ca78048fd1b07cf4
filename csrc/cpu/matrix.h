// The one matrix product of attention: a tile of rows by vectors, held in registers over the whole depth.
#pragma once

#include "simd.h"

namespace contentv::CONTENTV_INSTRUCTIONS {

/// Rows by columns, `row` values from one row to the next.
template <typename A>
struct Rows {
  A* data;
  int64_t row;
};

/// The left factor, read value by value: value (r, k) lies at data[r * row + k * depth].
template <typename A>
struct Left {
  const A* data;
  int64_t row, depth;
};

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int WIDEST = 4;  // 32 registers
constexpr int rows_of(int vectors) { return vectors == 4 ? 6 : 8; }
#else
constexpr int WIDEST = 3;  // 16 registers
constexpr int rows_of(int vectors) { return vectors == 3 ? 4 : vectors == 2 ? 6 : 8; }
#endif

/// Inlined by force: a call passes `left` through memory, and reads it only after the stores of the tile before.
template <typename A, int ROWS, int VECTORS>
inline __attribute__((always_inline)) void multiply_tile(
    int64_t depth, Left<A> left, Rows<const A> right, Rows<A> out, bool add) {
  Vector<A> sums[ROWS][VECTORS] = {};
  const A* value = left.data;
  const A* line = right.data;
  for (int64_t step = 0; step < depth; ++step, value += left.depth, line += right.row) {
    Vector<A> columns[VECTORS];
#pragma GCC unroll 8
    for (int c = 0; c < VECTORS; ++c) columns[c] = load(line + c * LANES<A>);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const Vector<A> factor = broadcast(value[r * left.row]);
#pragma GCC unroll 8
      for (int c = 0; c < VECTORS; ++c) sums[r][c] = multiply_add(factor, columns[c], sums[r][c]);
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    for (int c = 0; c < VECTORS; ++c) {
      A* to = out.data + r * out.row + c * LANES<A>;
      store(to, add ? load(to) + sums[r][c] : sums[r][c]);
    }
  }
}

/// All rows of a strip of VECTORS vectors, in tiles of ROWS rows, then of fewer.
template <typename A, int ROWS, int VECTORS>
inline void multiply_strip(
    int64_t rows, int64_t depth, Left<A> left, Rows<const A> right, Rows<A> out, bool add) {
  for (; rows >= ROWS; rows -= ROWS) {
    multiply_tile<A, ROWS, VECTORS>(depth, left, right, out, add);
    left.data += ROWS * left.row;
    out.data += ROWS * out.row;
  }
  if constexpr (ROWS > 1) {
    constexpr int FEWER = ROWS > 4 ? 4 : ROWS / 2;
    if (rows > 0) multiply_strip<A, FEWER, VECTORS>(rows, depth, left, right, out, add);
  }
}

/// out (+)= left * right, for `vectors` whole vectors of columns.
template <typename A>
inline void multiply(
    int64_t rows, int64_t vectors, int64_t depth, Left<A> left, Rows<const A> right, Rows<A> out, bool add) {
  while (vectors > 0) {
    int taken = 1;
    if (WIDEST == 4 && vectors % 4 == 0) {
      multiply_strip<A, rows_of(4), WIDEST == 4 ? 4 : 1>(rows, depth, left, right, out, add);
      taken = 4;
    } else if (vectors == 3 || vectors >= 5) {
      multiply_strip<A, rows_of(3), 3>(rows, depth, left, right, out, add);
      taken = 3;
    } else if (vectors >= 2) {
      multiply_strip<A, rows_of(2), 2>(rows, depth, left, right, out, add);
      taken = 2;
    } else {
      multiply_strip<A, rows_of(1), 1>(rows, depth, left, right, out, add);
    }
    right.data += taken * LANES<A>;
    out.data += taken * LANES<A>;
    vectors -= taken;
  }
}

}  // namespace contentv::CONTENTV_INSTRUCTIONS
