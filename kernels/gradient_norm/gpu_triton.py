"""gradient_norm in Triton: one program for each piece of a gradient, one that adds the pieces' sums in a fixed order.

Only dense memory is walked: a transposed gradient is, in another order, which no sum of squares minds; one whose values
overlap or leave gaps is copied first.
"""

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..compilation import Config, Launch, compilations, on_meta, runs
from ..triton_chunks import chunk_table, kind_of, piece_of, places
from .operator import operator


@triton.jit
def _sum_of_squares(pointer, count, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    total = tl.full([BLOCK], 0.0, tl.float32)
    whole = count // BLOCK * BLOCK
    for begin in range(0, whole, BLOCK):  # without a mask, which would take the 16-byte loads away
        value = tl.load(places(pointer, begin + place, ALIGNED)).to(tl.float32)
        total += value * value
    value = tl.load(pointer + whole + place, mask=whole + place < count, other=0.0).to(tl.float32)
    return tl.sum(total + value * value, axis=0)


@triton.jit(do_not_specialize=["pieces"])
def _square(table, partials, pieces, KIND: tl.constexpr, BLOCK: tl.constexpr):
    count = tl.load(table + pieces + tl.program_id(0)).to(tl.int32)
    pointer = piece_of(table, 0, pieces, KIND)
    if pointer.to(tl.int64) % 16 == 0:
        total = _sum_of_squares(pointer, count, True, BLOCK)
    else:
        total = _sum_of_squares(pointer, count, False, BLOCK)
    tl.store(partials + tl.program_id(0), total)


@triton.jit(do_not_specialize=["pieces"])
def add(partials, squared, pieces, BLOCK: tl.constexpr):
    total = tl.full([BLOCK], 0.0, tl.float32)
    for begin in range(0, pieces, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        total += tl.load(partials + place, mask=place < pieces, other=0.0)
    tl.store(squared, tl.sum(total, axis=0))


CONFIG = Config(rows=1, columns=2048, warps=4)


def forward(gradients: Sequence[Tensor], squared: Tensor, config: Config = CONFIG) -> Iterator[Launch]:
    kinds = dict.fromkeys(gradient.dtype for gradient in gradients)
    groups = [[dense(gradient) for gradient in gradients if gradient.dtype == kind] for kind in kinds]
    tables = [chunk_table(group) for group in groups]
    partials = squared.new_empty(sum(table.shape[1] for table in tables))
    start = 0
    for group, table in zip(groups, tables, strict=True):
        pieces = table.shape[1]
        yield Launch(
            kernel=_square,
            grid=(pieces,),
            arguments={
                "table": table, "partials": partials[start : start + pieces], "pieces": pieces,
                "KIND": kind_of(group[0]), "BLOCK": config.columns,
            },
            num_warps=config.warps,
        )  # fmt: skip
        start += pieces
    yield Launch(kernel=add, grid=(1,), arguments={
        "partials": partials, "squared": squared, "pieces": start, "BLOCK": 2048,
    })  # fmt: skip


def dense(gradient: Tensor) -> Tensor:
    """This gradient, or a copy if its values are not one run of memory."""
    expected = 1
    for stride, size in sorted(zip(gradient.stride(), gradient.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return gradient.contiguous()
            expected *= size
    return gradient


gradient_norm = operator("gpu_triton", runs(forward))


COMPILED = tuple(
    each
    for kind in (torch.bfloat16, torch.float32)
    for each in compilations(f"{kind}", forward([on_meta(kind, 9728, 2432)], on_meta(torch.float32)))
)
