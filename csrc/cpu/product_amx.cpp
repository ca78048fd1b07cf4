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
constexpr int64_t TILE = 2 * SIDE;   // rows and columns of the output in four registers
constexpr int64_t STEP = 32;        // bf16 values in a row: the depth that one instruction sums over
constexpr int64_t REGISTER = 1024;  // bytes
constexpr int64_t PARTS = 3;

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

/// A block of one factor on its way into panels, a row at a time.
///
/// A panel has TILE indices; for each STEP of the depth two squares of SIDE indices lie in it, each in PARTS registers
/// whose row is an index (of left) or a pair of depths (of right). Where memory has it the other way round, the square is
/// turned first. Packing all of a block at once takes a third of the product's time; between the matrix unit's
/// instructions, which leave the rest of the core idle, a row costs next to nothing.
class Packing {
 public:
  /// Begins with `count` indices of `from` over `depth`. `calls` of proceed() will pack them all; finish() what is left.
  void begin(Factor<float> from, int64_t count, int64_t depth, bool row_is_index, char* to, int64_t calls) {
    from_ = from, count_ = count, depth_ = depth, to_ = to;
    lies_by_depth_ = from.depth == 1;
    is_turned_ = lies_by_depth_ != row_is_index;
    square_ = chore_ = due_ = 0;
    squares_ = pieces(count, TILE) * pieces(depth, STEP) * 2;
    chores_ = SIDE + (is_turned_ ? TURNS : 0);
    rate_ = calls ? pieces(squares_ * chores_ * WHOLE, calls) : 0;
    if (squares_ > 0) aim();
  }

  void proceed() {
    for (due_ += rate_; due_ >= WHOLE && square_ < squares_; due_ -= WHOLE) do_chore();
  }

  void finish() {
    while (square_ < squares_) do_chore();
  }

 private:
  static constexpr int64_t TURNS = 8, WHOLE = 1 << 16;  // the rate is in fractions of a chore
  static constexpr int64_t AHEAD = 64;                  // indices or depths that are fetched before their turn

  void do_chore() {
    if (!is_turned_) pack_row(line(0, chore_), line(1, chore_), chore_);
    else if (chore_ < TURNS) turn(chore_ / 4, chore_ % 4 * 4);
    else pack_row(load(turned_[0] + (chore_ - TURNS) * SIDE), load(turned_[1] + (chore_ - TURNS) * SIDE), chore_ - TURNS);
    if (++chore_ < chores_) return;
    chore_ = 0;
    if (++square_ < squares_) aim();
  }

  /// At the square's first index and depth.
  void aim() {
    const int64_t in_panel = 2 * pieces(depth_, STEP), number = square_ % in_panel;
    const int64_t index = square_ / in_panel * TILE + number % 2 * SIDE, depth = number / 2 * STEP;
    corner_ = from_.from(index, depth).data, square_to_ = to_ + square_ * PARTS * REGISTER;
    indices_left_ = count_ - index, depth_left_ = depth_ - depth;
  }

  /// A line of memory, zeros outside: 16 depths of an index, or all indices at a depth; of the step's first half or second.
  Vector<float> line(int64_t half, int64_t number) const {
    if (lies_by_depth_) {
      if (number >= indices_left_) return Vector<float>();
      const float* there = corner_ + number * from_.index + half * SIDE;
      __builtin_prefetch(there + AHEAD);
      return load_some(there, depth_left_ - half * SIDE);
    }
    const int64_t depth = half * SIDE + number;
    if (depth >= depth_left_) return Vector<float>();
    const float* there = corner_ + depth * from_.depth;
    __builtin_prefetch(there + AHEAD * from_.depth);
    if (from_.index == 1) return load_some(there, indices_left_);
    float values[SIDE] = {};
    for (int64_t index = 0; index < smaller(indices_left_, SIDE); ++index) values[index] = there[index * from_.index];
    return load(values);
  }

  /// Four lines become four columns.
  void turn(int64_t half, int64_t first) {
    const __m512 a = (__m512)line(half, first), b = (__m512)line(half, first + 1);
    const __m512 c = (__m512)line(half, first + 2), d = (__m512)line(half, first + 3);
    const __m512d low_ab = (__m512d)_mm512_unpacklo_ps(a, b), high_ab = (__m512d)_mm512_unpackhi_ps(a, b);
    const __m512d low_cd = (__m512d)_mm512_unpacklo_ps(c, d), high_cd = (__m512d)_mm512_unpackhi_ps(c, d);
    // A quarter of the n-th holds row n of the columns, that of the next quarter row n + 4.
    const __m512 rows[4] = {(__m512)_mm512_unpacklo_pd(low_ab, low_cd), (__m512)_mm512_unpackhi_pd(low_ab, low_cd),
                            (__m512)_mm512_unpacklo_pd(high_ab, high_cd), (__m512)_mm512_unpackhi_pd(high_ab, high_cd)};
    float* to = turned_[half] + first;
    for (int row = 0; row < 4; ++row, to += SIDE) {
      _mm_store_ps(to, _mm512_castps512_ps128(rows[row]));
      _mm_store_ps(to + 4 * SIDE, _mm512_extractf32x4_ps(rows[row], 1));
      _mm_store_ps(to + 8 * SIDE, _mm512_extractf32x4_ps(rows[row], 2));
      _mm_store_ps(to + 12 * SIDE, _mm512_extractf32x4_ps(rows[row], 3));
    }
  }

  void pack_row(Vector<float> low, Vector<float> high, int64_t row) const {
    store_parts(low, high, square_to_ + row * REGISTER / SIDE);
  }

  Factor<float> from_{};
  int64_t count_ = 0, depth_ = 0;
  char* to_ = nullptr;
  bool lies_by_depth_ = false, is_turned_ = false;
  int64_t squares_ = 0, chores_ = 0, rate_ = 0;
  int64_t square_ = 0, chore_ = 0, due_ = 0;
  const float* corner_ = nullptr;
  char* square_to_ = nullptr;
  int64_t indices_left_ = 0, depth_left_ = 0;
  alignas(64) float turned_[2][SIDE * SIDE];
};

int64_t panel_bytes(int64_t depth) { return 2 * pieces(depth, STEP) * PARTS * REGISTER; }

void configure_registers() {
  struct alignas(64) Shape {
    uint8_t palette = 1, first_row = 0, reserved[14] = {};
    uint16_t bytes[SIDE] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[SIDE] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
  // Constant: GCC 12 tells its optimiser of eight bytes that the instruction reads, and a variable's others may be gone.
  static constexpr Shape shape;
  _tile_loadconfig(&shape);
}

constexpr int64_t PAUSES = 6;  // calls of between() in a step

/// out (+)= the product of two panels. Registers: 0 to 3 the sums, 4 and 5 a part of left, 6 and 7 one of right.
template <typename Between>
void multiply(
    int64_t depth, const char* left, const char* right, float* out, int64_t row, bool add, const Between& between) {
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
  const auto multiply_parts = [&] {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    between();
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

/// A thread has a part of the output and walks over it in blocks of rows and of the depth, and in each over the columns,
/// a panel of right at a time. While a panel is multiplied the next one is packed, and a piece of the next block of left:
/// both have two places, which change roles.
class Product {
 public:
  Product(int64_t depth, Factor<float> left, Factor<float> right, Output<float> out)
      : depth_(depth), left_(left), right_(right), out_(out) {}

  void run() const {
    if (left_.count == 0 || right_.count == 0) return;
    // The threads share the rows as long as there are rows enough, else the columns. No sum depends on it.
    const int64_t threads = thread_count();
    const bool has_rows = left_.count >= threads * ROWS / 2;
    const int64_t rows = pieces(pieces(left_.count, has_rows ? threads : 1), TILE) * TILE;
    const int64_t columns = pieces(pieces(right_.count, has_rows ? 1 : threads), TILE) * TILE;
    const int64_t down = pieces(left_.count, rows), across = pieces(right_.count, columns);
    // Blocks of one size: a short one would be over before the next is packed.
    const int64_t block_rows = pieces(pieces(rows, pieces(rows, ROWS)), TILE) * TILE;
    const int64_t blocks_deep = pieces(depth_, DEPTH);
    const int64_t block_depth = blocks_deep ? pieces(pieces(depth_, blocks_deep), STEP) * STEP : STEP;
    const int64_t left_bytes = block_rows / TILE * panel_bytes(block_depth), right_bytes = panel_bytes(block_depth);
    in_parallel(down * across, 2 * (left_bytes + right_bytes), [&](int64_t task, char* memory) {
      const int64_t row = task % down * rows, column = task / down * columns;
      configure_registers();
      multiply_part({row, smaller(row + rows, left_.count), column, smaller(column + columns, right_.count), block_rows,
                     block_depth},
                    {memory, memory + left_bytes}, {memory + 2 * left_bytes, memory + 2 * left_bytes + right_bytes});
      _tile_release();
    });
  }

 private:
  // Two blocks of left, packed, take three quarters of a core's second cache. A block of the depth is added to the one
  // before.
  static constexpr int64_t DEPTH = 512, ROWS = 256;

  struct Block {
    int64_t row, row_end, at, depth;

    int64_t calls() const { return pieces(row_end - row, TILE) * pieces(depth, STEP) * PAUSES; }
  };

  struct Part {
    int64_t row, row_end, column, column_end, block_rows, block_depth;

    int64_t panels() const { return pieces(column_end - column, TILE); }
  };

  struct Places {
    char *one, *other;

    char* operator[](int64_t number) const { return number % 2 ? other : one; }
  };

  void multiply_part(const Part& part, Places lefts, Places rights) const {
    // One block even without depth, for the zeros or the bias.
    const int64_t deep = depth_ ? pieces(depth_, part.block_depth) : 1, panels = part.panels();
    const int64_t blocks = pieces(part.row_end - part.row, part.block_rows) * deep;
    const auto block_at = [&](int64_t number) {
      const int64_t row = part.row + number / deep * part.block_rows, at = number % deep * part.block_depth;
      return Block{row, smaller(row + part.block_rows, part.row_end), at, smaller(part.block_depth, depth_ - at)};
    };
    Packing next_left, next_right;
    const auto begin_left = [&](int64_t number, int64_t calls) {
      if (number == blocks) return;
      const Block block = block_at(number);
      next_left.begin(left_.from(block.row, block.at), block.row_end - block.row, block.depth, true, lefts[number], calls);
    };
    const auto begin_right = [&](int64_t number, int64_t calls) {
      if (number == blocks * panels) return;
      const Block block = block_at(number / panels);
      const int64_t column = part.column + number % panels * TILE;
      next_right.begin(right_.from(column, block.at), smaller(TILE, part.column_end - column), block.depth, false,
                       rights[number], calls);
    };
    begin_left(0, 0);
    begin_right(0, 0);
    for (int64_t number = 0; number < blocks; ++number) {
      const Block block = block_at(number);
      next_left.finish();
      begin_left(number + 1, panels * block.calls());
      for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t index = number * panels + panel;
        next_right.finish();
        begin_right(index + 1, block.calls());
        multiply_panel(block, lefts[number], rights[index], part.column + panel * TILE, [&] {
          next_right.proceed();
          next_left.proceed();
        });
      }
    }
  }

  template <typename Between>
  void multiply_panel(
      const Block& block, const char* left, const char* right, int64_t column, const Between& between) const {
    for (int64_t row = block.row; row < block.row_end; row += TILE, left += panel_bytes(block.depth)) {
      const bool is_last = row + TILE >= block.row_end;
      prefetch_tile<TILE, TILE>(out_, is_last ? block.row : row + TILE, left_.count, is_last ? column + TILE : column);
      fill_tile<TILE, TILE>(out_, row, column, left_.count - row, right_.count - column, block.at > 0,
                            [&](float* tile, int64_t tile_row, bool add) {
                              multiply(block.depth, left, right, tile, tile_row, add, between);
                            });
    }
  }

  int64_t depth_;
  Factor<float> left_, right_;
  Output<float> out_;
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
  Product(left.sizes[1], factor_of<float>(left, 0), factor_of<float>(right, 1),
          {static_cast<float*>(out.data), out.sizes[1], static_cast<const float*>(bias.data), add})
      .run();
}

}  // namespace contentv::amx
