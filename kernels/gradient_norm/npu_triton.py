"""gradient_norm in Triton for Ascend: as many programs as vector cores share the pieces of all gradients, one adds what
they found in a fixed order. What is not dense is copied first, as in gpu_triton.py.
"""

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ascend_memory import Live, Tile, shared_by, tile, vector_cores
from ..compilation import Launch, compilations, on_meta, runs
from ..triton_chunks import offset_table
from .gpu_triton import add, dense
from .operator import operator


@triton.jit(do_not_specialize=["pieces", "programs"])
def _square(gradients, table, partials, pieces, programs, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    place = tl.arange(0, BLOCK)
    total = tl.full([BLOCK], 0.0, tl.float32)
    for piece in range(program, pieces, programs):
        start = gradients + tl.load(table + piece)
        count = tl.load(table + pieces + piece).to(tl.int32)
        for begin in range(0, count, BLOCK):
            value = tl.load(start + begin + place, mask=begin + place < count, other=0.0).to(tl.float32)
            total += value * value
    tl.store(partials + program, tl.sum(total, axis=0))


LIVE = Live(streamed=1, work=3)
"""A gradient; in fp32, squared, and the sum."""
_COLUMNS = 8192


def config(dtype: torch.dtype) -> Tile:
    return tile("gradient_norm by npu_triton", LIVE, _COLUMNS, dtype, most=1)


def forward(gradients: Sequence[Tensor], squared: Tensor, tiled: Tile | None = None) -> Iterator[Launch]:
    kinds = dict.fromkeys(gradient.dtype for gradient in gradients)
    groups = [[dense(gradient) for gradient in gradients if gradient.dtype == kind] for kind in kinds]
    cores = vector_cores(squared)
    partials = squared.new_zeros(len(groups), cores)
    for group, sums in zip(groups, partials, strict=True):
        tiled = tiled or config(group[0].dtype)
        table = offset_table(group)
        pieces = table.shape[1]
        programs = shared_by(cores, pieces)
        yield Launch(
            kernel=_square,
            grid=(programs,),
            arguments={
                "gradients": group[0], "table": table, "partials": sums, "pieces": pieces, "programs": programs,
                "BLOCK": tiled.columns,
            },
            unified_buffer=tiled.bytes,
        )  # fmt: skip
    yield Launch(kernel=add, grid=(1,), arguments={
        "partials": partials, "squared": squared, "pieces": partials.numel(), "BLOCK": 2048,
    })  # fmt: skip


gradient_norm = operator("npu_triton", runs(forward))


COMPILED = tuple(
    each
    for kind in (torch.bfloat16, torch.float32)
    for each in compilations(f"{kind}", forward([on_meta(kind, 9728, 2432)], on_meta(torch.float32)))
)
