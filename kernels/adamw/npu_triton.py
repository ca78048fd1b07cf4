"""adamw in Triton for Ascend: as many programs as vector cores share the pieces of all tensors of a group, in one
launch. The order of operations is the contract's; the vector units round a product before it is added to.
"""

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ascend_memory import Live, Tile, shared_by, tile, vector_cores
from ..compilation import Launch, runs
from ..triton_chunks import offset_table
from .operator import operator
from .triton_launch import compiled, numbers


@triton.jit(do_not_specialize=["pieces", "programs"])
def _update(
    masters, gradients, moments1, moments2, emas, copies, table, clip_factor, pieces, programs, decay, beta1_rest,
    beta2, beta2_rest, root_correction2, epsilon, rate, ema_decay, ema_rest, HAS_EMA: tl.constexpr,
    HAS_COPY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    factor = tl.load(clip_factor).to(tl.float32)
    offsets = tl.arange(0, BLOCK)
    for piece in range(tl.program_id(0), pieces, programs):
        master = masters + tl.load(table + piece)
        gradient = gradients + tl.load(table + pieces + piece)
        moment1 = moments1 + tl.load(table + 2 * pieces + piece)
        moment2 = moments2 + tl.load(table + 3 * pieces + piece)
        ema, copy = master, master
        if HAS_EMA:
            ema = emas + tl.load(table + 4 * pieces + piece)
        if HAS_COPY:
            copy = copies + tl.load(table + (4 + HAS_EMA) * pieces + piece)
        count = tl.load(table + (4 + HAS_EMA + HAS_COPY) * pieces + piece).to(tl.int32)
        for begin in range(0, count, BLOCK):
            place = begin + offsets
            there = place < count
            g = tl.load(gradient + place, mask=there, other=0.0).to(tl.float32) * factor
            value = tl.load(master + place, mask=there, other=0.0) * decay
            first = tl.load(moment1 + place, mask=there, other=0.0)
            second = tl.load(moment2 + place, mask=there, other=0.0)
            first = first + (g - first) * beta1_rest
            second = second * beta2 + beta2_rest * g * g
            value = value - first / (tl.sqrt(second) / root_correction2 + epsilon) * rate
            tl.store(moment1 + place, first, mask=there)
            tl.store(moment2 + place, second, mask=there)
            tl.store(master + place, value, mask=there)
            if HAS_EMA:
                average = tl.load(ema + place, mask=there, other=0.0)
                tl.store(ema + place, average * ema_decay + value * ema_rest, mask=there)
            if HAS_COPY:
                tl.store(copy + place, value.to(copy.dtype.element_ty), mask=there)


LIVE = Live(streamed=8, work=3)
"""Of master, moments and average, which come and go, the gradient and the copy as many as are on their way at once; the
steps between."""
_MOST_COLUMNS = 2048


def config() -> Tile:
    """Everything counted as fp32, which only the gradient and the copy may not be."""
    return tile("adamw by npu_triton", LIVE, _MOST_COLUMNS, torch.float32, most=1)


def update(
    masters: Sequence[Tensor], gradients: Sequence[Tensor], moments1: Sequence[Tensor], moments2: Sequence[Tensor],
    emas: Sequence[Tensor], copies: Sequence[Tensor], clip_factor: Tensor, lr: float, beta1: float, beta2: float,
    epsilon: float, weight_decay: float, step: int, ema_decay: float, tiled: Tile | None = None,
) -> Iterator[Launch]:  # fmt: skip
    tiled = tiled or config()
    table = offset_table(masters, gradients, moments1, moments2, *filter(None, (emas, copies)))
    pieces = table.shape[1]
    programs = shared_by(vector_cores(masters[0]), pieces)
    yield Launch(
        kernel=_update,
        grid=(programs,),
        arguments={
            "masters": masters[0], "gradients": gradients[0], "moments1": moments1[0], "moments2": moments2[0],
            "emas": emas[0] if emas else None, "copies": copies[0] if copies else None, "table": table,
            "clip_factor": clip_factor, "pieces": pieces, "programs": programs,
            **numbers(lr, beta1, beta2, epsilon, weight_decay, step, ema_decay), "HAS_EMA": bool(emas),
            "HAS_COPY": bool(copies), "BLOCK": tiled.columns,
        },
        unified_buffer=tiled.bytes,
    )  # fmt: skip


adamw = operator("npu_triton", runs(update))

COMPILED = compiled(update)
