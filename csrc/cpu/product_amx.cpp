// Matrix products of fp32 on the processor's matrix unit (AMX), which multiplies bf16 and adds in fp32.
//
// A value is the sum of three bf16 numbers, hi + mid + lo, exactly: 8 bits each. Of the nine products of two values' parts
// the six largest are made; the three left out are below 2^-24 of the product, an fp32 rounding. Depth is summed 32 at a
// time from zero, so the result is closer to the exact one than a chain of fp32 multiply-adds.
// Source: Henry, Tang, Heinecke, Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision
// Computations, arXiv 1904.06376, section III.
//
// Infinities, and what is within 2^-9 of the largest float, come out as NaN; parts below 2^-126 count as zero.

#include "product.h"

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace contentv::amx {
namespace {

constexpr int64_t SIDE = 16;        // rows of a tile register, and fp32 values in one of its rows
constexpr int64_t STEP = 32;        // bf16 values in a row: the depth that one instruction sums over
constexpr int64_t REGISTER = 1024;  // bytes
constexpr int64_t PARTS = 3;

/// Sixteen registers' rows: a matrix of 16 x 16 values.
using Square = Vector<float>[SIDE];

/// The three parts of a value, each in the upper half of a lane.
struct Parts {
  Bits part[PARTS];

  explicit Parts(Vector<float> value) {
    part[0] = ((Bits)value + 0x8000u) & 0xffff0000u;  // rounded, so that what is left has either sign
    const Vector<float> rest = value - (Vector<float>)part[0];
    part[1] = (Bits)rest & 0xffff0000u;
    part[2] = (Bits)(rest - (Vector<float>)part[1]);
  }
};

/// Depth 0 to 15 in `low`, 16 to 31 in `high`: a lane of the tile's row holds values 16 apart. Any order of the depth
/// would do, as long as both factors have the same.
inline void store_parts(Vector<float> low, Vector<float> high, char* to) {
  const Parts lower(low), upper(high);
  for (int64_t part = 0; part < PARTS; ++part) {
    store(reinterpret_cast<float*>(to + part * REGISTER), (Vector<float>)((lower.part[part] >> 16) | upper.part[part]));
  }
}

inline Vector<float> load_some(const float* from, int64_t count) {
  return (Vector<float>)_mm512_maskz_loadu_ps(count >= SIDE ? 0xffff : count > 0 ? (1 << count) - 1 : 0, from);
}

struct Tiles {
  using A = float;
  static constexpr int64_t ROWS = 2 * SIDE, COLUMNS = 2 * SIDE;

  static int64_t panel_bytes(int64_t indices, int64_t depth) {
    return indices / SIDE * pieces(depth, STEP) * PARTS * REGISTER;
  }

  /// A tile's row is an index.
  static void pack_left(Factor<float> from, int64_t count, int64_t depth, char* to) { pack(from, count, depth, true, to); }

  /// A tile's row is a pair of depths.
  static void pack_right(Factor<float> from, int64_t count, int64_t depth, char* to) {
    pack(from, count, depth, false, to);
  }

  static void begin() {
    struct alignas(64) {
      uint8_t palette = 1, first_row = 0, reserved[14] = {};
      uint16_t bytes[SIDE] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[SIDE] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shape;
    _tile_loadconfig(&shape);
  }

  static void end() { _tile_release(); }

  /// Registers: 0 to 3 the sums, 4 and 5 a part of left, 6 and 7 one of right.
  static void multiply(int64_t depth, const char* left, const char* right, float* out, int64_t row, bool add) {
    const int64_t bytes = row * sizeof(float);
    float* lower = out + SIDE * row;
    if (add) {
      _tile_loadd(0, out, bytes);
      _tile_loadd(1, out + SIDE, bytes);
      _tile_loadd(2, lower, bytes);
      _tile_loadd(3, lower + SIDE, bytes);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    const auto load_left = [&](int64_t part) {
      _tile_loadd(4, left + part * REGISTER, 64);
      _tile_loadd(5, left + (PARTS + part) * REGISTER, 64);
    };
    const auto load_right = [&](int64_t part) {
      _tile_loadd(6, right + part * REGISTER, 64);
      _tile_loadd(7, right + (PARTS + part) * REGISTER, 64);
    };
    const auto multiply_parts = [] {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    };
    for (int64_t at = 0; at < depth; at += STEP, left += 2 * PARTS * REGISTER, right += 2 * PARTS * REGISTER) {
      load_left(0), load_right(2), multiply_parts();
      load_right(1), multiply_parts();
      load_left(1), multiply_parts();
      load_right(0), multiply_parts();
      load_left(2), multiply_parts();
      load_left(0), multiply_parts();
    }
    _tile_stored(0, out, bytes);
    _tile_stored(1, out + SIDE, bytes);
    _tile_stored(2, lower, bytes);
    _tile_stored(3, lower + SIDE, bytes);
  }

 private:
  /// A panel: for each step of the depth two squares of indices, for each of those its parts.
  static void pack(Factor<float> from, int64_t count, int64_t depth, bool row_is_index, char* to) {
    for (int64_t at = 0; at < depth; at += STEP) {
      for (int64_t first = 0; first < 2 * SIDE; first += SIDE, to += PARTS * REGISTER) {
        Square low, high;
        fetch(from.from(first, at), count - first, depth - at, row_is_index, low, high);
        for (int64_t r = 0; r < SIDE; ++r) store_parts(low[r], high[r], to + r * 64);
      }
    }
  }

  /// 16 indices of depth 0 to 15 and of depth 16 to 31, in rows of one index or of one depth; zeros outside.
  static void fetch(Factor<float> from, int64_t count, int64_t depth, bool row_is_index, Square& low, Square& high) {
    if (from.depth == 1) {
      for (int64_t index = 0; index < SIDE; ++index) {
        const float* line = from.data + index * from.index;
        const bool is_there = index < count;
        low[index] = is_there ? load_some(line, depth) : Vector<float>();
        high[index] = is_there && depth > SIDE ? load_some(line + SIDE, depth - SIDE) : Vector<float>();
      }
    } else {
      for (int64_t at = 0; at < SIDE; ++at) {
        low[at] = at < depth ? line_of(from, at, count) : Vector<float>();
        high[at] = at + SIDE < depth ? line_of(from, at + SIDE, count) : Vector<float>();
      }
    }
    if ((from.depth == 1) != row_is_index) {
      transpose(low);
      transpose(high);
    }
  }

  /// The 16 indices at one depth.
  static Vector<float> line_of(Factor<float> from, int64_t depth, int64_t count) {
    const float* line = from.data + depth * from.depth;
    if (from.index == 1) return load_some(line, count);
    float values[SIDE] = {};
    for (int64_t index = 0; index < smaller(count, SIDE); ++index) values[index] = line[index * from.index];
    return load(values);
  }
};

}  // namespace

const char* refusal() {
  static const char* const reason = []() -> const char* {
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
      return "the processor has no AVX-512";
    }
    unsigned a, b, c, d;
    __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
    constexpr unsigned AMX_BF16 = 1u << 22, AMX_TILE = 1u << 24;
    if ((d & AMX_BF16) == 0 || (d & AMX_TILE) == 0) return "the processor has no AMX";
    // Tile registers are given to a process that asks for them, and to those it forks.
    constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18;
    if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) != 0) return "the kernel does not grant AMX's registers";
    return nullptr;
  }();
  return reason;
}

void matrix_product(const Array& left, const Array& right, const Array& bias, const Array& out, bool add) {
  PackedProduct<Tiles>(left.sizes[1], factor_of<float>(left, 0), factor_of<float>(right, 1),
                       {static_cast<float*>(out.data), out.sizes[1], static_cast<const float*>(bias.data), add})
      .run();
}

}  // namespace contentv::amx
