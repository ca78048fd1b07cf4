"""Kernels that the compile gate must refuse: a gate that lets one of them pass measures nothing. They never run."""

import triton
import triton.language as tl

from .compilation import Compilation


@triton.jit
def whole_row(x, y, WIDTH: tl.constexpr):
    columns = tl.arange(0, WIDTH)
    values = tl.load(x + columns)
    tl.store(y + columns, values / tl.sum(values))


@triton.jit
def product(a, b, c, width, TILE: tl.constexpr):
    rows, columns = tl.arange(0, TILE)[:, None], tl.arange(0, TILE)[None, :]
    total = tl.zeros((TILE, TILE), tl.float32)
    for start in range(0, width, TILE):
        left = tl.load(a + rows * width + start + columns)
        right = tl.load(b + (start + rows) * TILE + columns)
        total = tl.dot(left, right, total)
    tl.store(c + rows * TILE + columns, total)


def _product(config: str, tile: int, **options) -> Compilation:
    signature = {"a": "*bf16", "b": "*bf16", "c": "*fp32", "width": "i32", "TILE": "constexpr"}
    return Compilation(
        kernel=product, config=config, signature=signature, constants={"TILE": tile},
        aligned=frozenset(("a", "b", "c", "width")), **options,
    )  # fmt: skip


COMPILED = (
    Compilation(
        kernel=whole_row, config="512 values in a thread: spills",
        signature={"x": "*fp32", "y": "*fp32", "WIDTH": "constexpr"}, constants={"WIDTH": 2**14},
        aligned=frozenset(("x", "y")), num_warps=1, num_stages=1,
    ),
    _product("20 tiles of 16 KiB at once: too much shared memory", 64, num_warps=4, num_stages=20),
    _product(
        "a warp cannot ask for what a warpgroup does: broken promise", 32, num_warps=1, num_stages=2,
        promises={"sm_80": ("HGMMA",), "sm_90": ("HGMMA",), "sm_100": ("UTCHMMA",)},
    ),
)  # fmt: skip

CUDA_SOURCE = """
__global__ void chosen_of_many(const int* places, const float* values, float* sums) {
    float kept[64] = {};
    for (int i = 0; i < 256; ++i) kept[places[i]] += values[i];  // registers have no addresses: it goes on the stack
    for (int i = 0; i < 64; ++i) sums[i] = kept[i];
}
"""
