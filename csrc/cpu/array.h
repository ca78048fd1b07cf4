// What a kernel is given: a tensor as a pointer with sizes and strides, and threads to share its work. No torch here.
#pragma once

#include <cstdint>

namespace contentv {

enum class Type { float32, float64, bfloat16, float16, int64 };

/// A tensor; strides are counted in values. Without data where an optional tensor was not given.
struct Array {
  void* data = nullptr;
  Type type = Type::float32;
  const int64_t* sizes = nullptr;
  const int64_t* strides = nullptr;
  int64_t rank = 0;

  int64_t count() const {
    int64_t product = 1;
    for (int64_t axis = 0; axis < rank; ++axis) product *= sizes[axis];
    return product;
  }
};

/// A few tensors of one kind: the parameters of an optimizer's group.
struct Arrays {
  const Array* first = nullptr;
  int64_t count = 0;
};

/// Runs task(context, index, scratch) for every index in [0, tasks), on torch's own threads. They take the indices in
/// order, so a task may wait for one of a lower index. Each thread has `bytes` of scratch memory, aligned to 64.
void run_tasks(int64_t tasks, int64_t bytes, void (*task)(void*, int64_t, void*), void* context);

/// Threads that run_tasks has.
int64_t thread_count();

/// run_tasks for a lambda taking (index, scratch).
template <typename Body>
void in_parallel(int64_t tasks, int64_t bytes, const Body& body) {
  auto call = [](void* context, int64_t index, void* scratch) {
    (*static_cast<const Body*>(context))(index, static_cast<char*>(scratch));
  };
  run_tasks(tasks, bytes, call, const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace contentv
