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

namespace contentv::CONTENTV_INSTRUCTIONS {
namespace {

constexpr int64_t QUERIES = 48;  // in a block: whole vectors for every instruction set and both types
constexpr int64_t KEYS = 96;     // in a block
constexpr int64_t FORWARD_QUERIES = 5 * QUERIES;  // about what a forward task has: the blocks share unpacked keys
constexpr int64_t BACKWARD_KEYS = 512;            // about what a backward task has
constexpr double LOG2_E = 1.4426950408889634;

/// [B, H, tokens, E] of any strides, one sample's head at a time.
template <typename T>
struct Tokens {
  T* data;
  int64_t batch, head, token, value;

  explicit Tokens(const Array& array)
      : data(array.at<T>()),
        batch(array.strides[0]),
        head(array.strides[1]),
        token(array.strides[2]),
        value(array.strides[3]) {}

  T* at(int64_t sample, int64_t which, int64_t index) const {
    return data + sample * batch + which * head + index * token;
  }
};

struct Sizes {
  int64_t batch, heads, queries, keys, width;

  Sizes(const Array& q, const Array& k)
      : batch(q.sizes[0]), heads(q.sizes[1]), queries(q.sizes[2]), keys(k.sizes[2]), width(q.sizes[3]) {}
};

/// `total` in equal parts of about `size`, each a multiple of `unit`.
int64_t part_of(int64_t total, int64_t size, int64_t unit) {
  const int64_t parts = (total + size - 1) / size;
  return ((total + parts - 1) / parts + unit - 1) / unit * unit;
}

int64_t smaller(int64_t left, int64_t right) { return left < right ? left : right; }

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

/// Token rows as contiguous values of type A, `padded` apart, zeros behind the width and behind the last token.
template <typename T, typename A>
void unpack(const Tokens<const T>& tokens, const T* first, int64_t count, int64_t width, int64_t rows, int64_t padded, A* to) {
  for (int64_t row = 0; row < count; ++row) {
    gather(first + row * tokens.token, tokens.value, width, to + row * padded);
    for (int64_t index = width; index < padded; ++index) to[row * padded + index] = 0;
  }
  for (int64_t index = count * padded; index < rows * padded; ++index) to[index] = 0;
}

/// to[e][query] = factor * from[query][e]
template <typename A>
void transpose(const A* from, int64_t width, int64_t padded, A factor, A* to) {
  for (int64_t e = 0; e < width; ++e) {
    for (int64_t query = 0; query < QUERIES; ++query) to[e * QUERIES + query] = factor * from[query * padded + e];
  }
}

// --- Forward ---------------------------------------------------------------------------------------------------------

/// One block of queries while it walks over the keys.
template <typename A>
struct Running {
  A *queries_EQ, *out_QE, *highest_Q, *total_Q;

  Running(Scratch& scratch, int64_t width, int64_t padded)
      : queries_EQ(scratch.take<A>(width * QUERIES)),
        out_QE(scratch.take<A>(QUERIES * padded)),
        highest_Q(scratch.take<A>(QUERIES)),
        total_Q(scratch.take<A>(QUERIES)) {}
};

/// Turns scores (in units of ln 2) into weights relative to the highest so far, and lets the sums follow it.
template <typename A>
void soften(A* scores_JQ, int64_t keys, Running<A>& running, A* factor_Q) {
  for (int64_t lane = 0; lane < QUERIES; lane += LANES<A>) {
    const Vector<A> before = load(running.highest_Q + lane);
    Vector<A> highest = before;
    for (int64_t key = 0; key < keys; ++key) highest = larger(load(scores_JQ + key * QUERIES + lane), highest);
    Vector<A> total = {};
    for (int64_t key = 0; key < keys; ++key) {
      A* score = scores_JQ + key * QUERIES + lane;
      const Vector<A> weight = power_of_two(load(score) - highest);
      store(score, weight);
      total += weight;
    }
    const Vector<A> factor = power_of_two(before - highest);
    store(factor_Q + lane, factor);
    store(running.highest_Q + lane, highest);
    store(running.total_Q + lane, multiply_add(load(running.total_Q + lane), factor, total));
  }
}

template <typename A>
void scale_rows(A* rows, int64_t padded, const A* factor_Q) {
  for (int64_t query = 0; query < QUERIES; ++query, rows += padded) {
    const Vector<A> factor = broadcast(factor_Q[query]);
    for (int64_t e = 0; e < padded; e += LANES<A>) store(rows + e, load(rows + e) * factor);
  }
}

template <typename T>
void forward(const Array& q, const Array& k, const Array& v, double scale, const Array& out, const Array& lse) {
  using A = Accumulator<T>;
  const Sizes sizes(q, k);
  const int64_t padded = whole_vectors<A>(sizes.width);
  const int64_t task_queries = part_of(sizes.queries, FORWARD_QUERIES, QUERIES);
  const int64_t parts = (sizes.queries + task_queries - 1) / task_queries;
  const Tokens<const T> from_q(q), from_k(k), from_v(v);
  const Tokens<T> to_out(out);

  auto plan = [&](char* memory, auto use) {
    Scratch scratch{memory};
    A* keys_JE = scratch.take<A>(KEYS * padded);
    A* values_JE = scratch.take<A>(KEYS * padded);
    A* scores_JQ = scratch.take<A>(KEYS * QUERIES);
    A* factor_Q = scratch.take<A>(QUERIES);
    char* rest = scratch.next;
    for (int64_t block = 0; block < task_queries; block += QUERIES) Running<A>(scratch, sizes.width, padded);
    use(keys_JE, values_JE, scores_JQ, factor_Q, rest);
    return scratch.used;
  };
  const int64_t bytes = plan(nullptr, [](auto...) {});

  in_parallel(sizes.batch * sizes.heads * parts, bytes, [&](int64_t task, char* memory) {
    const int64_t first = task % parts * task_queries, head = task / parts % sizes.heads;
    const int64_t sample = task / parts / sizes.heads;
    const int64_t queries = smaller(task_queries, sizes.queries - first);

    plan(memory, [&](A* keys_JE, A* values_JE, A* scores_JQ, A* factor_Q, char* rest) {
      Scratch scratch{rest};
      for (int64_t block = 0; block < queries; block += QUERIES) {
        Running<A> running(scratch, sizes.width, padded);
        const int64_t count = smaller(QUERIES, queries - block);
        unpack(from_q, from_q.at(sample, head, first + block), count, sizes.width, QUERIES, padded, running.out_QE);
        transpose(running.out_QE, sizes.width, padded, static_cast<A>(scale * LOG2_E), running.queries_EQ);
        for (int64_t index = 0; index < QUERIES * padded; ++index) running.out_QE[index] = 0;
        for (int64_t query = 0; query < QUERIES; ++query) {
          running.highest_Q[query] = -__builtin_inff();
          running.total_Q[query] = 0;
        }
      }
      for (int64_t key = 0; key < sizes.keys; key += KEYS) {
        const int64_t keys = smaller(KEYS, sizes.keys - key);
        unpack(from_k, from_k.at(sample, head, key), keys, sizes.width, keys, padded, keys_JE);
        unpack(from_v, from_v.at(sample, head, key), keys, sizes.width, keys, padded, values_JE);
        Scratch again{rest};
        for (int64_t block = 0; block < queries; block += QUERIES) {
          Running<A> running(again, sizes.width, padded);
          multiply<A>(keys, QUERIES / LANES<A>, sizes.width, {keys_JE, padded, 1}, {running.queries_EQ, QUERIES},
                      {scores_JQ, QUERIES}, false);
          soften(scores_JQ, keys, running, factor_Q);
          scale_rows(running.out_QE, padded, factor_Q);
          multiply<A>(QUERIES, padded / LANES<A>, keys, {scores_JQ, 1, QUERIES}, {values_JE, padded},
                      {running.out_QE, padded}, true);
        }
      }
      Scratch last{rest};
      for (int64_t block = 0; block < queries; block += QUERIES) {
        Running<A> running(last, sizes.width, padded);
        const int64_t count = smaller(QUERIES, queries - block);
        for (int64_t query = 0; query < QUERIES; ++query) factor_Q[query] = 1 / running.total_Q[query];
        scale_rows(running.out_QE, padded, factor_Q);
        for (int64_t query = 0; query < count; ++query) {
          T* to = to_out.at(sample, head, first + block + query);
          const A* row = running.out_QE + query * padded;
          sweep<A>(sizes.width, [&](int64_t e, auto part) { store(to + e, load(row + e, part), part); });
          const double sum = std::log(static_cast<double>(running.total_Q[query]));
          lse.at<A>()[(sample * sizes.heads + head) * sizes.queries + first + block + query] =
              static_cast<A>(running.highest_Q[query] / LOG2_E + sum);
        }
      }
    });
  });
}

// --- Backward --------------------------------------------------------------------------------------------------------

/// delta = sum_E(out * d_out) - d_lse, contiguous [B, H, Q].
template <typename T>
void fill_delta(const Sizes& sizes, const Array& d_out, const Array& d_lse, const Array& out, Accumulator<T>* delta) {
  using A = Accumulator<T>;
  const Tokens<const T> from_out(out), from_d_out(d_out);
  const int64_t width = whole_vectors<A>(sizes.width);
  in_parallel(sizes.batch * sizes.heads, 2 * width * sizeof(A), [&](int64_t task, char* memory) {
    const int64_t sample = task / sizes.heads, head = task % sizes.heads;
    A* out_row = reinterpret_cast<A*>(memory);
    A* d_out_row = out_row + width;
    for (int64_t query = 0; query < sizes.queries; ++query) {
      gather(from_out.at(sample, head, query), from_out.value, sizes.width, out_row);
      gather(from_d_out.at(sample, head, query), from_d_out.value, sizes.width, d_out_row);
      Vector<A> sum = {};
      sweep<A>(sizes.width, [&](int64_t e, auto part) {
        sum = multiply_add(load(out_row + e, part), load(d_out_row + e, part), sum);
      });
      A value = sum_of(sum);
      if (d_lse.data) {
        value -= d_lse.at<A>()[sample * d_lse.strides[0] + head * d_lse.strides[1] + query * d_lse.strides[2]];
      }
      delta[task * sizes.queries + query] = value;
    }
  });
}

/// What a backward task holds: its keys and their gradients, and one block of queries.
template <typename A>
struct Workspace {
  A *keys_JE, *values_JE, *d_keys_JE, *d_values_JE;
  A *queries_QE, *queries_EQ, *d_out_QE, *d_out_EQ, *d_queries_QE, *lse_Q, *delta_Q;
  A *weights_JQ, *d_scores_JQ;

  Workspace(Scratch& scratch, int64_t keys, int64_t width, int64_t padded)
      : keys_JE(scratch.take<A>(keys * padded)),
        values_JE(scratch.take<A>(keys * padded)),
        d_keys_JE(scratch.take<A>(keys * padded)),
        d_values_JE(scratch.take<A>(keys * padded)),
        queries_QE(scratch.take<A>(QUERIES * padded)),
        queries_EQ(scratch.take<A>(QUERIES * width)),
        d_out_QE(scratch.take<A>(QUERIES * padded)),
        d_out_EQ(scratch.take<A>(QUERIES * width)),
        d_queries_QE(scratch.take<A>(QUERIES * padded)),
        lse_Q(scratch.take<A>(QUERIES)),
        delta_Q(scratch.take<A>(QUERIES)),
        weights_JQ(scratch.take<A>(KEYS * QUERIES)),
        d_scores_JQ(scratch.take<A>(KEYS * QUERIES)) {}
};

/// weights = 2^(scores - lse); d_scores = weights * (d_weights - delta): both in place.
template <typename A>
void differentiate_softmax(A* scores_JQ, A* d_weights_JQ, int64_t keys, const A* lse_Q, const A* delta_Q) {
  for (int64_t lane = 0; lane < QUERIES; lane += LANES<A>) {
    const Vector<A> lse = load(lse_Q + lane), delta = load(delta_Q + lane);
    for (int64_t at = lane; at < keys * QUERIES; at += QUERIES) {
      const Vector<A> weight = power_of_two(load(scores_JQ + at) - lse);
      store(scores_JQ + at, weight);
      store(d_weights_JQ + at, weight * (load(d_weights_JQ + at) - delta));
    }
  }
}

/// One block of queries against all keys of a task: adds to d_keys and d_values, and leaves d_queries.
template <typename A>
void differentiate_block(const Workspace<A>& work, int64_t keys, int64_t width, int64_t padded) {
  constexpr int64_t query_vectors = QUERIES / LANES<A>;
  const int64_t vectors = padded / LANES<A>;
  for (int64_t key = 0; key < keys; key += KEYS) {
    const int64_t count = smaller(KEYS, keys - key), at = key * padded;
    multiply<A>(count, query_vectors, width, {work.keys_JE + at, padded, 1}, {work.queries_EQ, QUERIES},
                {work.weights_JQ, QUERIES}, false);
    multiply<A>(count, query_vectors, width, {work.values_JE + at, padded, 1}, {work.d_out_EQ, QUERIES},
                {work.d_scores_JQ, QUERIES}, false);
    differentiate_softmax(work.weights_JQ, work.d_scores_JQ, count, work.lse_Q, work.delta_Q);
    multiply<A>(count, vectors, QUERIES, {work.weights_JQ, QUERIES, 1}, {work.d_out_QE, padded},
                {work.d_values_JE + at, padded}, true);
    multiply<A>(count, vectors, QUERIES, {work.d_scores_JQ, QUERIES, 1}, {work.queries_QE, padded},
                {work.d_keys_JE + at, padded}, true);
    multiply<A>(QUERIES, vectors, count, {work.d_scores_JQ, 1, QUERIES}, {work.keys_JE + at, padded},
                {work.d_queries_QE, padded}, key > 0);
  }
}

/// For the moment that a task of a lower index needs to get there, which another thread runs.
void wait_until_above(const std::atomic<int64_t>& finished, int64_t count) {
  while (finished.load(std::memory_order_acquire) <= count) sched_yield();
}

template <typename T>
void backward(const AttentionGradients& given, double scale) {
  using A = Accumulator<T>;
  const Sizes sizes(given.q, given.k);
  const int64_t padded = whole_vectors<A>(sizes.width), heads = sizes.batch * sizes.heads;
  const int64_t task_keys = part_of(sizes.keys, BACKWARD_KEYS, 1);
  const int64_t parts = (sizes.keys + task_keys - 1) / task_keys;
  const Tokens<const T> from_q(given.q), from_k(given.k), from_v(given.v), from_d_out(given.d_out);
  const Tokens<T> to_q(given.d_q), to_k(given.d_k), to_v(given.d_v);

  std::unique_ptr<A[]> delta(new A[heads * sizes.queries]);
  fill_delta<T>(sizes, given.d_out, given.d_lse, given.out, delta.get());

  // The parts of a head's keys add to its queries' gradients one after the other: part p adds to a block once
  // finished[head][p - 1] counts more blocks than that. In low precision the sum is kept apart, in float.
  std::unique_ptr<std::atomic<int64_t>[]> finished(new std::atomic<int64_t>[heads * parts]());
  const bool apart = sizeof(T) != sizeof(A) && parts > 1;
  std::unique_ptr<A[]> sums(apart ? new A[heads * sizes.queries * sizes.width] : nullptr);

  Scratch counted{nullptr};
  Workspace<A>(counted, task_keys, sizes.width, padded);
  in_parallel(heads * parts, counted.used, [&](int64_t task, char* memory) {
    const int64_t part = task / heads, row = task % heads, sample = row / sizes.heads, head = row % sizes.heads;
    const int64_t first = part * task_keys, keys = smaller(task_keys, sizes.keys - first);
    Scratch scratch{memory};
    Workspace<A> work(scratch, task_keys, sizes.width, padded);
    unpack(from_k, from_k.at(sample, head, first), keys, sizes.width, keys, padded, work.keys_JE);
    unpack(from_v, from_v.at(sample, head, first), keys, sizes.width, keys, padded, work.values_JE);
    for (int64_t index = 0; index < keys * padded; ++index) work.d_keys_JE[index] = work.d_values_JE[index] = 0;

    for (int64_t block = 0; block < sizes.queries; block += QUERIES) {
      const int64_t count = smaller(QUERIES, sizes.queries - block), at = row * sizes.queries + block;
      // Queries behind the last are zeros, as is their d_out: they add nothing to any gradient.
      unpack(from_q, from_q.at(sample, head, block), count, sizes.width, QUERIES, padded, work.queries_QE);
      unpack(from_d_out, from_d_out.at(sample, head, block), count, sizes.width, QUERIES, padded, work.d_out_QE);
      transpose(work.queries_QE, sizes.width, padded, static_cast<A>(scale * LOG2_E), work.queries_EQ);
      transpose(work.d_out_QE, sizes.width, padded, A(1), work.d_out_EQ);
      for (int64_t query = 0; query < QUERIES; ++query) {
        work.lse_Q[query] = query < count ? static_cast<A>(given.lse.at<A>()[at + query] * LOG2_E) : 0;
        work.delta_Q[query] = query < count ? delta[at + query] : 0;
      }
      differentiate_block(work, keys, sizes.width, padded);

      if (part > 0) wait_until_above(finished[row * parts + part - 1], block / QUERIES);
      for (int64_t query = 0; query < count; ++query) {
        const A* from = work.d_queries_QE + query * padded;
        T* to = to_q.at(sample, head, block + query);
        A* sum = apart ? sums.get() + (at + query) * sizes.width : reinterpret_cast<A*>(to);
        sweep<A>(sizes.width, [&](int64_t e, auto rest) {
          Vector<A> value = load(from + e, rest) * broadcast(static_cast<A>(scale));
          if (part > 0) value = load(sum + e, rest) + value;
          if (part + 1 == parts) store(to + e, value, rest);
          else store(sum + e, value, rest);
        });
      }
      finished[row * parts + part].store(block / QUERIES + 1, std::memory_order_release);
    }
    for (int64_t key = 0; key < keys; ++key) {
      T* to_key = to_k.at(sample, head, first + key);
      T* to_value = to_v.at(sample, head, first + key);
      sweep<A>(sizes.width, [&](int64_t e, auto rest) {
        const int64_t from = key * padded + e;
        store(to_key + e, load(work.d_keys_JE + from, rest) * broadcast(static_cast<A>(scale)), rest);
        store(to_value + e, load(work.d_values_JE + from, rest), rest);
      });
    }
  });
}

}  // namespace

void joint_attention(const Array& q, const Array& k, const Array& v, double scale, const Array& out, const Array& lse) {
  with_type(q.type, [&](auto type) { forward<decltype(type)>(q, k, v, scale, out, lse); });
}

void joint_attention_backward(const AttentionGradients& given, double scale) {
  with_type(given.q.type, [&](auto type) { backward<decltype(type)>(given, scale); });
}

}  // namespace contentv::CONTENTV_INSTRUCTIONS
