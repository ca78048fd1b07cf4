// Joint attention, blocked: the scores of a few queries and keys at a time, never a whole row of them in memory.
//
// Scores lie transposed, [key][query]: a query owns a lane, so the softmax runs down the lanes and never across them, and
// both products with the scores read them as they lie. Formulas: kernels/joint_attention/__init__.py. Scheme:
// FlashAttention-2, arXiv 2307.08691, algorithms 1 and 2.
//
// Every sum has an order that depends on the shapes alone: any number of threads gives the same bits.

#include <sched.h>

#include <atomic>
#include <cmath>
#include <memory>

#include "kernels.h"
#include "matrix.h"
#include "memory.h"

namespace contentv::CONTENTV_INSTRUCTIONS {
namespace {

constexpr int64_t QUERIES = 48;  // in a block: whole vectors for every instruction set and both types
constexpr int64_t KEYS = 96;     // in a block
constexpr int64_t FORWARD_QUERIES = 10 * QUERIES;  // about what a forward task has: the blocks share unpacked keys
constexpr int64_t BACKWARD_KEYS = 768;             // about what a backward task has
constexpr double LOG2_E = 1.4426950408889634;

struct Sizes {
  int64_t batch, heads, queries, keys, width;

  Sizes(const Array& q, const Array& k)
      : batch(q.sizes[0]), heads(q.sizes[1]), queries(q.sizes[2]), keys(k.sizes[2]), width(q.sizes[3]) {}
};

struct Head {
  int64_t sample, head;
};

/// `total` in equal parts of about `size`, each a multiple of `unit`; of nothing, one unit.
int64_t part_of(int64_t total, int64_t size, int64_t unit) {
  if (total == 0) return unit;
  const int64_t parts = (total + size - 1) / size;
  return ((total + parts - 1) / parts + unit - 1) / unit * unit;
}

/// Hands out pieces of scratch memory, or counts what they need when there is none.
struct Scratch {
  char* next;
  int64_t used = 0;

  template <typename A>
  A* take(int64_t count) {
    const int64_t bytes = (count * static_cast<int64_t>(sizeof(A)) + 63) / 64 * 64;
    A* piece = reinterpret_cast<A*>(next);
    if (next) next += bytes;
    used += bytes;
    return piece;
  }
};

/// `count` tokens' rows from token `first` of a head, `padded` apart, and zeros: behind the width, and in the rows from
/// `count` to `rows`.
template <typename A>
void unpack(const Reader<A>& from, Head head, int64_t first, int64_t count, int64_t rows, int64_t width, A* to) {
  const int64_t padded = whole_vectors<A>(width);
  from.copy_rows(from.at(head.sample, head.head, first), count, width, to, padded);
  if (padded > width) {
    for (int64_t row = 0; row < count; ++row) {
      for (int64_t index = width; index < padded; ++index) to[row * padded + index] = 0;
    }
  }
  for (int64_t index = count * padded; index < rows * padded; ++index) to[index] = 0;
}

/// to[e][query] = factor * from[query][e]
template <typename A>
void transpose_block(const A* from, int64_t padded, A factor, A* to) {
  for (int64_t query = 0; query < QUERIES; query += LANES<A>) {
    for (int64_t e = 0; e < padded; e += LANES<A>) {
      Vector<A> square[LANES<A>];
      const A* corner = from + query * padded + e;
      for (int row = 0; row < LANES<A>; ++row) square[row] = load(corner + row * padded) * broadcast(factor);
      transpose(square);
      for (int row = 0; row < LANES<A>; ++row) store(to + (e + row) * QUERIES + query, square[row]);
    }
  }
}

// --- Forward ---------------------------------------------------------------------------------------------------------

/// One block of queries while it walks over the keys.
template <typename A>
struct Running {
  A *queries_EQ, *out_QE, *highest_Q, *total_Q;

  Running(Scratch& scratch, int64_t padded)
      : queries_EQ(scratch.take<A>(padded * QUERIES)),
        out_QE(scratch.take<A>(QUERIES * padded)),
        highest_Q(scratch.take<A>(QUERIES)),
        total_Q(scratch.take<A>(QUERIES)) {}
};

/// Turns scores (in units of ln 2) into weights relative to the highest so far, and lets the sums follow it: for a few
/// vectors of queries from `first` on, so that no sum waits for the one before.
template <typename A, int VECTORS>
void soften(A* scores_JQ, int64_t keys, int64_t first, Running<A>& running, A* factor_Q) {
  Vector<A> highest[VECTORS], total[VECTORS] = {};
  for (int one = 0; one < VECTORS; ++one) highest[one] = load(running.highest_Q + first + one * LANES<A>);
  for (int64_t key = 0; key < keys; ++key) {
    for (int one = 0; one < VECTORS; ++one) {
      highest[one] = larger(load(scores_JQ + key * QUERIES + first + one * LANES<A>), highest[one]);
    }
  }
  for (int64_t key = 0; key < keys; ++key) {
    for (int one = 0; one < VECTORS; ++one) {
      A* score = scores_JQ + key * QUERIES + first + one * LANES<A>;
      const Vector<A> weight = power_of_two(load(score) - highest[one]);
      store(score, weight);
      total[one] += weight;
    }
  }
  for (int one = 0; one < VECTORS; ++one) {
    const int64_t lane = first + one * LANES<A>;
    const Vector<A> factor = power_of_two(load(running.highest_Q + lane) - highest[one]);
    store(factor_Q + lane, factor);
    store(running.highest_Q + lane, highest[one]);
    store(running.total_Q + lane, multiply_add(load(running.total_Q + lane), factor, total[one]));
  }
}

template <typename A>
void scale_rows(A* rows, int64_t count, int64_t padded, const A* factor_Q) {
  for (int64_t query = 0; query < count; ++query, rows += padded) {
    const Vector<A> factor = broadcast(factor_Q[query]);
    for (int64_t e = 0; e < padded; e += LANES<A>) store(rows + e, load(rows + e) * factor);
  }
}

/// What a forward task holds: one block of keys, and all its blocks of queries.
template <typename A>
struct ForwardWork {
  A *keys_JE, *values_JE, *scores_JQ, *factor_Q;
  Scratch blocks;

  ForwardWork(Scratch& scratch, int64_t padded)
      : keys_JE(scratch.take<A>(KEYS * padded)),
        values_JE(scratch.take<A>(KEYS * padded)),
        scores_JQ(scratch.take<A>(KEYS * QUERIES)),
        factor_Q(scratch.take<A>(QUERIES)),
        blocks(scratch) {}
};

template <typename A>
class Forward {
 public:
  Forward(const Array& q, const Array& k, const Array& v, double scale, const Array& out, const Array& lse)
      : sizes_(q, k),
        padded_(whole_vectors<A>(sizes_.width)),
        task_queries_(part_of(sizes_.queries, FORWARD_QUERIES, QUERIES)),
        q_(q), k_(k), v_(v), out_(out), lse_(lse), scale_(scale) {}

  void run() const {
    const int64_t parts = (sizes_.queries + task_queries_ - 1) / task_queries_;
    Scratch counted{nullptr};
    ForwardWork<A>(counted, padded_);
    for (int64_t block = 0; block < task_queries_; block += QUERIES) Running<A>(counted, padded_);
    in_parallel(sizes_.batch * sizes_.heads * parts, counted.used, [&](int64_t task, char* memory) {
      const int64_t row = task / parts, first = task % parts * task_queries_;
      Scratch scratch{memory};
      const ForwardWork<A> work(scratch, padded_);
      const Head head{row / sizes_.heads, row % sizes_.heads};
      const int64_t end = smaller(first + task_queries_, sizes_.queries);
      for_each_block(work, first, end, [&](Running<A>& running, int64_t at) { begin(running, head, at); });
      for (int64_t key = 0; key < sizes_.keys; key += KEYS) {
        const int64_t keys = smaller(KEYS, sizes_.keys - key);
        unpack(k_, head, key, keys, keys, sizes_.width, work.keys_JE);
        unpack(v_, head, key, keys, keys, sizes_.width, work.values_JE);
        for_each_block(work, first, end, [&](Running<A>& running, int64_t at) { attend(work, running, at, keys); });
      }
      for_each_block(work, first, end, [&](Running<A>& running, int64_t at) { finish(work, running, head, at); });
    });
  }

 private:
  template <typename Body>
  void for_each_block(const ForwardWork<A>& work, int64_t first, int64_t end, const Body& body) const {
    Scratch blocks = work.blocks;
    for (int64_t at = first; at < end; at += QUERIES) {
      Running<A> running(blocks, padded_);
      body(running, at);
    }
  }

  void begin(Running<A>& running, Head head, int64_t at) const {
    const int64_t count = smaller(QUERIES, sizes_.queries - at);
    unpack(q_, head, at, count, QUERIES, sizes_.width, running.out_QE);
    transpose_block(running.out_QE, padded_, static_cast<A>(scale_ * LOG2_E), running.queries_EQ);
    for (int64_t index = 0; index < QUERIES * padded_; ++index) running.out_QE[index] = 0;
    for (int64_t query = 0; query < QUERIES; ++query) {
      running.highest_Q[query] = -__builtin_inff();
      running.total_Q[query] = 0;
    }
  }

  void attend(const ForwardWork<A>& work, Running<A>& running, int64_t at, int64_t keys) const {
    const int64_t queries = whole_vectors<A>(smaller(QUERIES, sizes_.queries - at));
    multiply<A>(keys, queries / LANES<A>, sizes_.width, {work.keys_JE, padded_, 1}, {running.queries_EQ, QUERIES},
                {work.scores_JQ, QUERIES}, false);
    int64_t first = 0;
    for (; first + 3 * LANES<A> <= queries; first += 3 * LANES<A>) {
      soften<A, 3>(work.scores_JQ, keys, first, running, work.factor_Q);
    }
    for (; first < queries; first += LANES<A>) soften<A, 1>(work.scores_JQ, keys, first, running, work.factor_Q);
    scale_rows(running.out_QE, queries, padded_, work.factor_Q);
    multiply<A>(queries, padded_ / LANES<A>, keys, {work.scores_JQ, 1, QUERIES}, {work.values_JE, padded_},
                {running.out_QE, padded_}, true);
  }

  void finish(const ForwardWork<A>& work, Running<A>& running, Head head, int64_t at) const {
    const int64_t count = smaller(QUERIES, sizes_.queries - at);
    for (int64_t query = 0; query < count; ++query) work.factor_Q[query] = 1 / running.total_Q[query];
    scale_rows(running.out_QE, count, padded_, work.factor_Q);
    for (int64_t query = 0; query < count; ++query) {
      out_.write(out_.at(head.sample, head.head, at + query), sizes_.width, running.out_QE + query * padded_);
      const double total = std::log(static_cast<double>(running.total_Q[query]));
      running.total_Q[query] = static_cast<A>(running.highest_Q[query] / LOG2_E + total);
    }
    lse_.write(lse_.at(head.sample, head.head, at), count, running.total_Q);
  }

  Sizes sizes_;
  int64_t padded_, task_queries_;
  Reader<A> q_, k_, v_;
  Writer<A> out_, lse_;
  double scale_;
};

// --- Backward --------------------------------------------------------------------------------------------------------

/// What a backward task holds: its keys and their gradients, and one block of queries.
template <typename A>
struct BackwardWork {
  A *keys_JE, *values_JE, *d_keys_JE, *d_values_JE;
  A *queries_QE, *queries_EQ, *d_out_QE, *d_out_EQ, *d_queries_QE, *lse_Q, *delta_Q;
  A *weights_JQ, *d_scores_JQ;

  BackwardWork(Scratch& scratch, int64_t keys, int64_t padded)
      : keys_JE(scratch.take<A>(keys * padded)),
        values_JE(scratch.take<A>(keys * padded)),
        d_keys_JE(scratch.take<A>(keys * padded)),
        d_values_JE(scratch.take<A>(keys * padded)),
        queries_QE(scratch.take<A>(QUERIES * padded)),
        queries_EQ(scratch.take<A>(QUERIES * padded)),
        d_out_QE(scratch.take<A>(QUERIES * padded)),
        d_out_EQ(scratch.take<A>(QUERIES * padded)),
        d_queries_QE(scratch.take<A>(QUERIES * padded)),
        lse_Q(scratch.take<A>(QUERIES)),
        delta_Q(scratch.take<A>(QUERIES)),
        weights_JQ(scratch.take<A>(KEYS * QUERIES)),
        d_scores_JQ(scratch.take<A>(KEYS * QUERIES)) {}
};

/// weights = 2^(scores - lse); d_scores = weights * (d_weights - delta): both in place.
template <typename A>
void differentiate_softmax(const BackwardWork<A>& work, int64_t queries, int64_t keys) {
  for (int64_t lane = 0; lane < queries; lane += LANES<A>) {
    const Vector<A> lse = load(work.lse_Q + lane), delta = load(work.delta_Q + lane);
    for (int64_t at = lane; at < keys * QUERIES; at += QUERIES) {
      const Vector<A> weight = power_of_two(load(work.weights_JQ + at) - lse);
      store(work.weights_JQ + at, weight);
      store(work.d_scores_JQ + at, weight * (load(work.d_scores_JQ + at) - delta));
    }
  }
}

/// One block of queries against all keys of a task: adds to d_keys and d_values, and leaves d_queries.
template <typename A>
void differentiate_block(const BackwardWork<A>& work, int64_t queries, int64_t keys, int64_t width, int64_t padded) {
  const int64_t query_vectors = queries / LANES<A>, vectors = padded / LANES<A>;
  for (int64_t key = 0; key < keys; key += KEYS) {
    const int64_t count = smaller(KEYS, keys - key), at = key * padded;
    multiply<A>(count, query_vectors, width, {work.keys_JE + at, padded, 1}, {work.queries_EQ, QUERIES},
                {work.weights_JQ, QUERIES}, false);
    multiply<A>(count, query_vectors, width, {work.values_JE + at, padded, 1}, {work.d_out_EQ, QUERIES},
                {work.d_scores_JQ, QUERIES}, false);
    differentiate_softmax(work, queries, count);
    multiply<A>(count, vectors, queries, {work.weights_JQ, QUERIES, 1}, {work.d_out_QE, padded},
                {work.d_values_JE + at, padded}, true);
    multiply<A>(count, vectors, queries, {work.d_scores_JQ, QUERIES, 1}, {work.queries_QE, padded},
                {work.d_keys_JE + at, padded}, true);
    multiply<A>(queries, vectors, count, {work.d_scores_JQ, 1, QUERIES}, {work.keys_JE + at, padded},
                {work.d_queries_QE, padded}, key > 0);
  }
}

template <typename A>
class Backward {
 public:
  Backward(const AttentionGradients& given, double scale)
      : sizes_(given.q, given.k),
        padded_(whole_vectors<A>(sizes_.width)),
        task_keys_(part_of(sizes_.keys, BACKWARD_KEYS, 1)),
        parts_((sizes_.keys + task_keys_ - 1) / task_keys_),
        q_(given.q), k_(given.k), v_(given.v), out_(given.out), lse_(given.lse), d_out_(given.d_out),
        d_lse_(given.d_lse), d_q_(given.d_q), d_k_(given.d_k), d_v_(given.d_v), scale_(scale),
        delta_(new A[sizes_.batch * sizes_.heads * sizes_.queries]),
        finished_(new std::atomic<int64_t>[sizes_.batch * sizes_.heads * parts_]()) {
    // In low precision the sum over a head's parts is kept apart, unrounded.
    if (given.q.type != TYPE<A> && parts_ > 1) {
      sums_.reset(new A[sizes_.batch * sizes_.heads * sizes_.queries * sizes_.width]);
    }
  }

  void run() {
    const int64_t heads = sizes_.batch * sizes_.heads;
    in_parallel(heads, 2 * padded_ * sizeof(A), [&](int64_t row, char* memory) {
      fill_delta(row, reinterpret_cast<A*>(memory));
    });
    Scratch counted{nullptr};
    BackwardWork<A>(counted, task_keys_, padded_);
    in_parallel(heads * parts_, counted.used, [&](int64_t task, char* memory) {
      const int64_t part = task / heads, row = task % heads, first = part * task_keys_;
      const Head head{row / sizes_.heads, row % sizes_.heads};
      const int64_t keys = smaller(task_keys_, sizes_.keys - first);
      Scratch scratch{memory};
      const BackwardWork<A> work(scratch, task_keys_, padded_);
      unpack(k_, head, first, keys, keys, sizes_.width, work.keys_JE);
      unpack(v_, head, first, keys, keys, sizes_.width, work.values_JE);
      for (int64_t index = 0; index < keys * padded_; ++index) work.d_keys_JE[index] = work.d_values_JE[index] = 0;
      for (int64_t at = 0; at < sizes_.queries; at += QUERIES) {
        read_block(work, head, at);
        const int64_t queries = whole_vectors<A>(smaller(QUERIES, sizes_.queries - at));
        differentiate_block(work, queries, keys, sizes_.width, padded_);
        add_block(work, head, at, part);
      }
      for (int64_t key = 0; key < keys; ++key) {
        A* d_key = work.d_keys_JE + key * padded_;
        for (int64_t e = 0; e < sizes_.width; ++e) d_key[e] *= static_cast<A>(scale_);
        d_k_.write(d_k_.at(head.sample, head.head, first + key), sizes_.width, d_key);
        d_v_.write(d_v_.at(head.sample, head.head, first + key), sizes_.width, work.d_values_JE + key * padded_);
      }
    });
  }

 private:
  int64_t row_of(Head head) const { return head.sample * sizes_.heads + head.head; }

  /// delta = sum_E(out * d_out) - d_lse
  void fill_delta(int64_t row, A* scratch) {
    const int64_t sample = row / sizes_.heads, head = row % sizes_.heads;
    for (int64_t query = 0; query < sizes_.queries; ++query) {
      const A* out = out_.row(out_.at(sample, head, query), sizes_.width, scratch);
      const A* d_out = d_out_.row(d_out_.at(sample, head, query), sizes_.width, scratch + padded_);
      Vector<A> sum = {};
      sweep<A>(sizes_.width, [&](int64_t e, auto part) {
        sum = multiply_add(load(out + e, part), load(d_out + e, part), sum);
      });
      A& delta = delta_[row * sizes_.queries + query];
      delta = sum_of(sum);
      if (d_lse_.is_there()) delta -= d_lse_.value(d_lse_.at(sample, head, query));
    }
  }

  void read_block(const BackwardWork<A>& work, Head head, int64_t at) const {
    const int64_t count = smaller(QUERIES, sizes_.queries - at);
    // Queries behind the last are zeros, as is their d_out: they add nothing to any gradient.
    unpack(q_, head, at, count, QUERIES, sizes_.width, work.queries_QE);
    unpack(d_out_, head, at, count, QUERIES, sizes_.width, work.d_out_QE);
    transpose_block(work.queries_QE, padded_, static_cast<A>(scale_ * LOG2_E), work.queries_EQ);
    transpose_block(work.d_out_QE, padded_, A(1), work.d_out_EQ);
    lse_.copy(lse_.at(head.sample, head.head, at), count, work.lse_Q);
    for (int64_t query = 0; query < QUERIES; ++query) {
      work.lse_Q[query] = query < count ? work.lse_Q[query] * static_cast<A>(LOG2_E) : 0;
      work.delta_Q[query] = query < count ? delta_[row_of(head) * sizes_.queries + at + query] : 0;
    }
  }

  /// Adds a block's d_queries to those of the parts before. They go one after the other, so that the sum has one order:
  /// a part waits until the one before has added this block.
  void add_block(const BackwardWork<A>& work, Head head, int64_t at, int64_t part) {
    std::atomic<int64_t>* finished = &finished_[row_of(head) * parts_];
    if (part > 0) {
      while (finished[part - 1].load(std::memory_order_acquire) <= at) sched_yield();
    }
    const int64_t count = smaller(QUERIES, sizes_.queries - at), width = sizes_.width;
    for (int64_t query = 0; query < count; ++query) {
      const int64_t place = d_q_.at(head.sample, head.head, at + query);
      A* from = work.d_queries_QE + query * padded_;
      A* sum = sums_ ? &sums_[(row_of(head) * sizes_.queries + at + query) * width] : d_q_.open(place, from);
      sweep<A>(width, [&](int64_t e, auto rest) {
        const Vector<A> value = load(from + e, rest) * broadcast(static_cast<A>(scale_));
        store(sum + e, part > 0 ? load(sum + e, rest) + value : value, rest);
      });
      if (part + 1 == parts_) d_q_.close(place, width, sum);
    }
    finished[part].store(at + 1, std::memory_order_release);
  }

  Sizes sizes_;
  int64_t padded_, task_keys_, parts_;
  Reader<A> q_, k_, v_, out_, lse_, d_out_, d_lse_;
  Writer<A> d_q_, d_k_, d_v_;
  double scale_;
  std::unique_ptr<A[]> delta_, sums_;
  std::unique_ptr<std::atomic<int64_t>[]> finished_;
};

}  // namespace

void joint_attention(const Array& q, const Array& k, const Array& v, double scale, const Array& out, const Array& lse) {
  with_accumulator(q.type, [&](auto zero) { Forward<decltype(zero)>(q, k, v, scale, out, lse).run(); });
}

void joint_attention_backward(const AttentionGradients& given, double scale) {
  with_accumulator(given.q.type, [&](auto zero) { Backward<decltype(zero)>(given, scale).run(); });
}

}  // namespace contentv::CONTENTV_INSTRUCTIONS
