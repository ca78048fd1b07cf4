// What the multi-tensor kernels share: a list of tensors as a table in the kernel's parameters, cut into chunks of which
// each block takes one; values of any dtype read and written several at a time; sums over a block.
//
// A table travels by value (CUDA 12.1 and sm_70 allow 32,764 bytes of parameters): no copy to the device, no memory that
// must outlive the launch, and a CUDA graph keeps it.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace contentv {

constexpr int THREADS = 256;
constexpr int WARP = 32;
constexpr size_t PARAMETER_BYTES = 32764;

// The numbers of kernels/cuda_library.py.
enum Dtype : int { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2, FLOAT64 = 3 };

struct Nothing {};  // the dtype of tensors that are not there

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(double value) { return static_cast<float>(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }

template <typename T>
__device__ __forceinline__ T rounded(float value);
template <>
__device__ __forceinline__ float rounded<float>(float value) { return value; }
template <>
__device__ __forceinline__ __nv_bfloat16 rounded<__nv_bfloat16>(float value) { return __float2bfloat16_rn(value); }
template <>
__device__ __forceinline__ __half rounded<__half>(float value) { return __float2half_rn(value); }

// VECTOR neighbours in one access.
template <typename T, int VECTOR>
struct alignas(sizeof(T) * VECTOR) Vector {
    T values[VECTOR];
};

template <int VECTOR, typename T>
__device__ __forceinline__ void load(float (&values)[VECTOR], const T* from) {
    const Vector<T, VECTOR> vector = *reinterpret_cast<const Vector<T, VECTOR>*>(from);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) values[i] = to_float(vector.values[i]);
}

template <int VECTOR, typename T>
__device__ __forceinline__ void store(T* to, const float (&values)[VECTOR]) {
    Vector<T, VECTOR> vector;
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) vector.values[i] = rounded<T>(values[i]);
    *reinterpret_cast<Vector<T, VECTOR>*>(to) = vector;
}

template <int VECTOR, typename T>
__device__ __forceinline__ bool is_aligned(const T* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % sizeof(Vector<T, VECTOR>) == 0;
}

// The tensor to which a block's chunk belongs: the last one whose first chunk is not behind it. The same for all threads
// of the block, so that the reads come from the constant cache.
__device__ __forceinline__ int tensor_of(const int* first_chunk, int tensors, int chunk) {
    int low = 0;
    for (int high = tensors; high - low > 1;) {
        const int middle = (low + high) / 2;
        if (first_chunk[middle] <= chunk) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

// Sum over the block, for thread 0; every call adds in the same order. Once in a kernel: the shared memory is not free
// for a second one.
template <typename T, int BLOCK>
__device__ __forceinline__ T block_sum(T value) {
    __shared__ T warp_sums[BLOCK / WARP];
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, distance);
    }
    if (threadIdx.x % WARP == 0) warp_sums[threadIdx.x / WARP] = value;
    __syncthreads();
    T total = 0;
    if (threadIdx.x == 0) {
#pragma unroll
        for (int warp = 0; warp < BLOCK / WARP; ++warp) total += warp_sums[warp];
    }
    return total;
}

inline int64_t chunks_of(int64_t count, int chunk) { return (count + chunk - 1) / chunk; }

template <typename... Parameters, typename... Arguments>
cudaError_t launch(
    void (*kernel)(Parameters...), int blocks, int threads, cudaStream_t stream, const Arguments&... arguments) {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(threads);
    config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace contentv
