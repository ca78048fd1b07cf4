// CUDA's words for a C++20 compiler, as far as csrc/cuda says them: each thread of a block is a thread of the host, blocks
// run one after the other. It shows arithmetic, indices, tables and barriers; it does not show what only hardware has:
// speed, the order of memory between blocks, registers, the caches (an access that is not aligned traps here too).

#pragma once

#include <algorithm>
#include <barrier>
#include <bit>
#include <cmath>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(threads)
#define __shared__ static  // one block at a time: what is static is the block's

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
inline const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "invalid value"; }

struct dim3 {
    unsigned x;
    explicit dim3(unsigned x = 1) : x(x) {}
};
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    cudaStream_t stream;
};

inline thread_local dim3 threadIdx, blockIdx;

namespace on_cpu {
struct Warp {
    std::barrier<> barrier{32};
    uint64_t values[32];
};
inline std::unique_ptr<std::barrier<>> block;
inline std::vector<std::unique_ptr<Warp>> warps;
}  // namespace on_cpu

inline void __syncthreads() { on_cpu::block->arrive_and_wait(); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, int distance) {
    on_cpu::Warp& warp = *on_cpu::warps[threadIdx.x / 32];
    const unsigned lane = threadIdx.x % 32;
    __builtin_memcpy(&warp.values[lane], &value, sizeof(T));
    warp.barrier.arrive_and_wait();
    __builtin_memcpy(&value, &warp.values[lane ^ distance], sizeof(T));
    warp.barrier.arrive_and_wait();
    return value;
}

using std::min;

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(
    const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), const Arguments&... arguments) {
    const unsigned threads = config->blockDim.x;
    if (threads % 32 || config->gridDim.x == 0) return cudaErrorInvalidValue;
    on_cpu::block = std::make_unique<std::barrier<>>(threads);
    on_cpu::warps.clear();
    for (unsigned warp = 0; warp < threads / 32; ++warp) on_cpu::warps.push_back(std::make_unique<on_cpu::Warp>());
    std::vector<std::jthread> running;
    for (unsigned thread = 0; thread < threads; ++thread) {
        running.emplace_back([&, thread] {
            threadIdx.x = thread;
            for (blockIdx.x = 0; blockIdx.x < config->gridDim.x; ++blockIdx.x) {
                kernel(arguments...);
                __syncthreads();
            }
        });
    }
    return cudaSuccess;
}
