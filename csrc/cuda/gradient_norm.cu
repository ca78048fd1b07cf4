// Squared L2 norm of a list of gradients. The contract is in kernels/gradient_norm/__init__.py.
//
// Two stages and no atomics: each block squares and adds one chunk of one tensor, then one block adds the chunks' sums.
// Chunks do not depend on the device, so the same gradients give the same bits on every chip. Read once: 4 bytes a value
// of fp32 against 2 operations; the limit is the memory's bandwidth.

#include <algorithm>

#include "tensors.cuh"

namespace contentv {
namespace {

constexpr int TENSORS = 1024;
constexpr int VALUES = 64;                // of one thread
constexpr int CHUNK = THREADS * VALUES;   // of one block
constexpr int IN_FLIGHT = 4;              // accesses of one thread before the first use
constexpr int SUM_THREADS = 1024;

struct Table {
    const void* gradient[TENSORS];
    int64_t count[TENSORS];
    int first_chunk[TENSORS + 1];
    int8_t dtype[TENSORS];
    int tensors;
};
static_assert(sizeof(Table) + 16 <= PARAMETER_BYTES, "the table must fit into a kernel's parameters");

// Every value of a whole, aligned chunk.
template <typename T>
__device__ __forceinline__ float whole_chunk(const T* gradient) {
    constexpr int VECTOR = 16 / sizeof(T);
    float sums[VECTOR] = {};
    for (int value = 0; value < VALUES; value += VECTOR * IN_FLIGHT) {
        float values[IN_FLIGHT][VECTOR];
#pragma unroll
        for (int each = 0; each < IN_FLIGHT; ++each) {
            load(values[each], gradient + value * THREADS + (each * THREADS + threadIdx.x) * VECTOR);
        }
#pragma unroll
        for (int each = 0; each < IN_FLIGHT; ++each) {
#pragma unroll
            for (int i = 0; i < VECTOR; ++i) sums[i] = fmaf(values[each][i], values[each][i], sums[i]);
        }
    }
    float sum = 0;
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) sum += sums[i];
    return sum;
}

// One value at a time: the end of a tensor, or a slice that is aligned to nothing.
template <typename T>
__device__ __forceinline__ float ragged_chunk(const T* gradient, int count) {
    float sum = 0;
    for (int start = threadIdx.x; start < count; start += THREADS * IN_FLIGHT) {
        float values[IN_FLIGHT];
#pragma unroll
        for (int each = 0; each < IN_FLIGHT; ++each) {
            // Behind the end the last value is read again, so that no load waits for a branch.
            const int index = start + each * THREADS;
            values[each] = to_float(gradient[min(index, count - 1)]);
            if (index >= count) values[each] = 0;
        }
#pragma unroll
        for (int each = 0; each < IN_FLIGHT; ++each) sum = fmaf(values[each], values[each], sum);
    }
    return sum;
}

template <typename T>
__device__ __forceinline__ float chunk_sum(const void* tensor, int64_t begin, int64_t count) {
    const T* gradient = static_cast<const T*>(tensor) + begin;
    if (count - begin >= CHUNK && is_aligned<16 / sizeof(T)>(gradient)) return whole_chunk(gradient);
    return ragged_chunk(gradient, static_cast<int>(min(count - begin, static_cast<int64_t>(CHUNK))));
}

__global__ void __launch_bounds__(THREADS) sum_chunks(const __grid_constant__ Table table, float* sums) {
    const int chunk = blockIdx.x;
    const int tensor = tensor_of(table.first_chunk, table.tensors, chunk);
    const int64_t begin = static_cast<int64_t>(chunk - table.first_chunk[tensor]) * CHUNK;
    const void* gradient = table.gradient[tensor];
    const int64_t count = table.count[tensor];
    float sum;
    switch (table.dtype[tensor]) {
        case FLOAT32: sum = chunk_sum<float>(gradient, begin, count); break;
        case BFLOAT16: sum = chunk_sum<__nv_bfloat16>(gradient, begin, count); break;
        case FLOAT16: sum = chunk_sum<__half>(gradient, begin, count); break;
        default: sum = chunk_sum<double>(gradient, begin, count);
    }
    sum = block_sum<float, THREADS>(sum);
    if (threadIdx.x == 0) sums[chunk] = sum;
}

// In fp64, which costs nothing here: half a million sums for 8 billion values.
__global__ void __launch_bounds__(SUM_THREADS) sum_sums(const float* sums, int chunks, float* squared) {
    double sum = 0;
#pragma unroll 8
    for (int chunk = threadIdx.x; chunk < chunks; chunk += SUM_THREADS) sum += sums[chunk];
    sum = block_sum<double, SUM_THREADS>(sum);
    if (threadIdx.x == 0) *squared = static_cast<float>(sum);
}

}  // namespace
}  // namespace contentv

// Chunks of all tensors together: the floats that contentv_gradient_norm needs at `sums`.
extern "C" int64_t contentv_gradient_norm_chunks(int tensors, const int64_t* counts) {
    int64_t chunks = 0;
    for (int tensor = 0; tensor < tensors; ++tensor) {
        chunks += contentv::chunks_of(counts[tensor], contentv::CHUNK);
    }
    return chunks;
}

extern "C" int contentv_gradient_norm(
    int tensors, const void* const* gradients, const int64_t* counts, const int* dtypes, float* sums, float* squared,
    cudaStream_t stream) {
    using namespace contentv;
    int chunks = 0;  // launched so far
    Table table;
    table.tensors = 0;
    table.first_chunk[0] = 0;
    for (int tensor = 0; tensor < tensors; ++tensor) {
        if (counts[tensor] > 0) {
            const int at = table.tensors++;
            table.gradient[at] = gradients[tensor];
            table.count[at] = counts[tensor];
            table.dtype[at] = static_cast<int8_t>(dtypes[tensor]);
            table.first_chunk[at + 1] = table.first_chunk[at] + static_cast<int>(chunks_of(counts[tensor], CHUNK));
        }
        const int blocks = table.first_chunk[table.tensors];
        if (blocks > 0 && (table.tensors == TENSORS || tensor == tensors - 1)) {
            const cudaError_t error = launch(sum_chunks, blocks, THREADS, stream, table, sums + chunks);
            if (error != cudaSuccess) return error;
            chunks += blocks;
            table.tensors = 0;
        }
    }
    return launch(sum_sums, 1, SUM_THREADS, stream, sums, chunks, squared);
}

extern "C" const char* contentv_cuda_error(int error) {
    return cudaGetErrorString(static_cast<cudaError_t>(error));
}
