// One AdamW step over a list of parameters. The contract and the order of operations are in kernels/adamw/__init__.py.
//
// With fp32 gradients, average and a bf16 copy a value costs 20 bytes read and 18 written; the limit is the memory's
// bandwidth. Values of an access are neighbours of one thread, accesses of a warp lie side by side, and a thread has all
// the reads of VALUES values under way before it computes the first.

#include "tensors.cuh"

namespace contentv {
namespace {

constexpr int TENSORS = 512;
constexpr int VALUES = 8;                     // of one thread at a time
constexpr int STRIDE = THREADS * VALUES;      // of one block at a time
constexpr int CHUNK = 4 * STRIDE;             // of one block
constexpr int WIDE = 4;                       // values in an access: 16 bytes of fp32, 8 of bf16 and fp16

struct Numbers {
    float master_decay;       // 1 - lr * weight_decay
    float moment1_weight;     // 1 - beta1
    float beta2;
    float moment2_weight;     // 1 - beta2
    float root_correction2;   // sqrt(1 - beta2^step)
    float epsilon;
    float step_size;          // lr / (1 - beta1^step)
    float ema_decay;
    float ema_weight;         // 1 - ema_decay
};

struct Table {
    float* master[TENSORS];
    const void* gradient[TENSORS];
    float* moment1[TENSORS];
    float* moment2[TENSORS];
    float* ema[TENSORS];
    void* copy[TENSORS];
    int64_t count[TENSORS];
    int first_chunk[TENSORS + 1];
    int tensors;
};
static_assert(sizeof(Table) + sizeof(Numbers) + 16 <= PARAMETER_BYTES, "the table must fit into a kernel's parameters");

// One parameter's chunk.
template <typename Gradient, typename Copy>
struct Chunk {
    float* master;
    const Gradient* gradient;
    float* moment1;
    float* moment2;
    float* ema;
    Copy* copy;
};

// torch.optim.AdamW's order: decay, moments, step, then the average of the new master.
template <bool EMA>
__device__ __forceinline__ void update_value(
    float& master, float gradient, float& moment1, float& moment2, float& ema, float clip, const Numbers& numbers) {
    const float clipped = gradient * clip;
    master *= numbers.master_decay;
    moment1 = fmaf(numbers.moment1_weight, clipped - moment1, moment1);
    moment2 = fmaf(numbers.moment2_weight, clipped * clipped, numbers.beta2 * moment2);
    const float denominator = sqrtf(moment2) / numbers.root_correction2 + numbers.epsilon;
    master = fmaf(-numbers.step_size, moment1 / denominator, master);
    if constexpr (EMA) ema = fmaf(numbers.ema_weight, master, numbers.ema_decay * ema);
}

// STRIDE values from `start` on, VECTOR in an access. Unless WHOLE, values behind `count` are read as the last one, so
// that no load waits for a branch, and are not written.
template <typename Gradient, typename Copy, bool EMA, int VECTOR, bool WHOLE>
__device__ __forceinline__ void update_stride(
    const Chunk<Gradient, Copy>& chunk, int start, int count, float clip, const Numbers& numbers) {
    constexpr int ACCESSES = VALUES / VECTOR;
    float master[ACCESSES][VECTOR], gradient[ACCESSES][VECTOR], moment1[ACCESSES][VECTOR], moment2[ACCESSES][VECTOR];
    float ema[ACCESSES][VECTOR];
    static_assert(WHOLE || VECTOR == 1, "a ragged end is taken value by value");
#pragma unroll
    for (int each = 0; each < ACCESSES; ++each) {
        const int index = start + (each * THREADS + threadIdx.x) * VECTOR;
        const int from = WHOLE ? index : min(index, count - 1);
        load(master[each], chunk.master + from);
        load(gradient[each], chunk.gradient + from);
        load(moment1[each], chunk.moment1 + from);
        load(moment2[each], chunk.moment2 + from);
        if constexpr (EMA) load(ema[each], chunk.ema + from);
    }
#pragma unroll
    for (int each = 0; each < ACCESSES; ++each) {
        const int index = start + (each * THREADS + threadIdx.x) * VECTOR;
        if (!WHOLE && index >= count) return;
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) {
            update_value<EMA>(
                master[each][i], gradient[each][i], moment1[each][i], moment2[each][i], ema[each][i], clip, numbers);
        }
        store(chunk.master + index, master[each]);
        store(chunk.moment1 + index, moment1[each]);
        store(chunk.moment2 + index, moment2[each]);
        if constexpr (EMA) store(chunk.ema + index, ema[each]);
        if constexpr (sizeof(Copy) > 1) store(chunk.copy + index, master[each]);
    }
}

template <typename Gradient, typename Copy, bool EMA>
__global__ void __launch_bounds__(THREADS) update(
    const __grid_constant__ Table table, const __grid_constant__ Numbers numbers, const float* clip_factor) {
    const int tensor = tensor_of(table.first_chunk, table.tensors, blockIdx.x);
    const int64_t begin = static_cast<int64_t>(blockIdx.x - table.first_chunk[tensor]) * CHUNK;
    Chunk<Gradient, Copy> chunk;
    chunk.master = table.master[tensor] + begin;
    chunk.gradient = static_cast<const Gradient*>(table.gradient[tensor]) + begin;
    chunk.moment1 = table.moment1[tensor] + begin;
    chunk.moment2 = table.moment2[tensor] + begin;
    chunk.ema = EMA ? table.ema[tensor] + begin : nullptr;
    chunk.copy = sizeof(Copy) > 1 ? static_cast<Copy*>(table.copy[tensor]) + begin : nullptr;
    const int count = static_cast<int>(min(table.count[tensor] - begin, static_cast<int64_t>(CHUNK)));
    const float clip = *clip_factor;
    const bool aligned = is_aligned<WIDE>(chunk.master) && is_aligned<WIDE>(chunk.gradient) &&
                         is_aligned<WIDE>(chunk.moment1) && is_aligned<WIDE>(chunk.moment2) &&
                         is_aligned<WIDE>(chunk.ema) && is_aligned<WIDE>(chunk.copy);
    if (aligned && count == CHUNK) {
        for (int start = 0; start < CHUNK; start += STRIDE) {
            update_stride<Gradient, Copy, EMA, WIDE, true>(chunk, start, count, clip, numbers);
        }
    } else {
        for (int start = 0; start < count; start += STRIDE) {
            update_stride<Gradient, Copy, EMA, 1, false>(chunk, start, count, clip, numbers);
        }
    }
}

using Kernel = void (*)(Table, Numbers, const float*);

template <typename Gradient, typename Copy>
Kernel by_ema(bool ema) {
    return ema ? update<Gradient, Copy, true> : update<Gradient, Copy, false>;
}

template <typename Gradient>
Kernel by_copy(int copy_dtype, bool ema) {
    switch (copy_dtype) {
        case FLOAT32: return by_ema<Gradient, float>(ema);
        case BFLOAT16: return by_ema<Gradient, __nv_bfloat16>(ema);
        case FLOAT16: return by_ema<Gradient, __half>(ema);
        default: return by_ema<Gradient, Nothing>(ema);
    }
}

Kernel kernel_for(int gradient_dtype, int copy_dtype, bool ema) {
    switch (gradient_dtype) {
        case FLOAT32: return by_copy<float>(copy_dtype, ema);
        case BFLOAT16: return by_copy<__nv_bfloat16>(copy_dtype, ema);
        case FLOAT16: return by_copy<__half>(copy_dtype, ema);
        default: return nullptr;
    }
}

}  // namespace
}  // namespace contentv

// The lists of pointers, each as long as there are tensors; emas and copies may be null.
struct ContentvAdamWTensors {
    int tensors;
    float* const* masters;
    const void* const* gradients;
    float* const* moments1;
    float* const* moments2;
    float* const* emas;
    void* const* copies;
    const int64_t* counts;
    int gradient_dtype;
    int copy_dtype;
};

extern "C" int contentv_adamw(
    const ContentvAdamWTensors* all, const float* clip_factor, const float* numbers, cudaStream_t stream) {
    using namespace contentv;
    const Kernel kernel = kernel_for(all->gradient_dtype, all->copies ? all->copy_dtype : -1, all->emas != nullptr);
    if (kernel == nullptr) return cudaErrorInvalidValue;
    const Numbers values = {numbers[0], numbers[1], numbers[2], numbers[3], numbers[4],
                            numbers[5], numbers[6], numbers[7], numbers[8]};
    Table table;
    table.tensors = 0;
    table.first_chunk[0] = 0;
    for (int tensor = 0; tensor < all->tensors; ++tensor) {
        if (all->counts[tensor] > 0) {
            const int at = table.tensors++;
            table.master[at] = all->masters[tensor];
            table.gradient[at] = all->gradients[tensor];
            table.moment1[at] = all->moments1[tensor];
            table.moment2[at] = all->moments2[tensor];
            table.ema[at] = all->emas ? all->emas[tensor] : nullptr;
            table.copy[at] = all->copies ? all->copies[tensor] : nullptr;
            table.count[at] = all->counts[tensor];
            table.first_chunk[at + 1] = table.first_chunk[at] + static_cast<int>(chunks_of(all->counts[tensor], CHUNK));
        }
        const int blocks = table.first_chunk[table.tensors];
        if (blocks > 0 && (table.tensors == TENSORS || tensor == all->tensors - 1)) {
            const cudaError_t error = launch(kernel, blocks, THREADS, stream, table, values, clip_factor);
            if (error != cudaSuccess) return error;
            table.tensors = 0;
        }
    }
    return cudaSuccess;
}
