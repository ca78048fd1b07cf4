"""adamw in Triton: all tensors of a group in one launch, a program for each piece.

The distributed optimizer hands over slices of flat buffers that begin anywhere. A piece whose every address is a
multiple of 16 bytes takes the path of 16-byte loads, the others one value at a time.

Bytes for each value: master, both moments and the average read and written, the gradient read, the copy written.
"""

from collections.abc import Iterator, Sequence

import triton
import triton.language as tl
from torch import Tensor

from ..compilation import Config, Launch, runs
from ..triton_chunks import chunk_table, kind_of, piece_of, places
from .operator import operator
from .triton_launch import compiled, numbers


@triton.jit
def _update_block(
    master, gradient, moment1, moment2, ema, copy, place, there, factor, decay, beta1_rest, beta2, beta2_rest,
    root_correction2, epsilon, rate, ema_decay, ema_rest, HAS_EMA: tl.constexpr, HAS_COPY: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    g = tl.load(places(gradient, place, ALIGNED), mask=there).to(tl.float32) * factor
    value = tl.load(places(master, place, ALIGNED), mask=there) * decay
    first = tl.load(places(moment1, place, ALIGNED), mask=there)
    second = tl.load(places(moment2, place, ALIGNED), mask=there)
    # Rounded where torch's kernels round: left to itself the compiler would fuse the decay rather than the step.
    first = tl.fma(g - first, beta1_rest, first)
    second = second * beta2 + beta2_rest * g * g
    denominator = tl.div_rn(tl.sqrt_rn(second), root_correction2) + epsilon
    value = tl.fma(tl.div_rn(first, denominator), -rate, value)
    tl.store(places(moment1, place, ALIGNED), first, mask=there)
    tl.store(places(moment2, place, ALIGNED), second, mask=there)
    tl.store(places(master, place, ALIGNED), value, mask=there)
    if HAS_EMA:
        average = tl.load(places(ema, place, ALIGNED), mask=there)
        tl.store(places(ema, place, ALIGNED), average * ema_decay + value * ema_rest, mask=there)
    if HAS_COPY:
        tl.store(places(copy, place, ALIGNED), value.to(copy.dtype.element_ty), mask=there)


@triton.jit
def _update_piece(
    master, gradient, moment1, moment2, ema, copy, count, factor, decay, beta1_rest, beta2, beta2_rest,
    root_correction2, epsilon, rate, ema_decay, ema_rest, HAS_EMA: tl.constexpr, HAS_COPY: tl.constexpr,
    ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    place = tl.arange(0, BLOCK)
    whole = count // BLOCK * BLOCK
    for begin in range(0, whole, BLOCK):  # without a mask, which would take the 16-byte loads away
        _update_block(
            master, gradient, moment1, moment2, ema, copy, begin + place, None, factor, decay, beta1_rest, beta2,
            beta2_rest, root_correction2, epsilon, rate, ema_decay, ema_rest, HAS_EMA, HAS_COPY, ALIGNED,
        )  # fmt: skip
    if whole < count:
        _update_block(
            master, gradient, moment1, moment2, ema, copy, whole + place, whole + place < count, factor, decay,
            beta1_rest, beta2, beta2_rest, root_correction2, epsilon, rate, ema_decay, ema_rest, HAS_EMA, HAS_COPY,
            False,
        )  # fmt: skip


@triton.jit(do_not_specialize=["pieces"])
def _update(
    table, clip_factor, pieces, decay, beta1_rest, beta2, beta2_rest, root_correction2, epsilon, rate, ema_decay,
    ema_rest, GRADIENT: tl.constexpr, COPY: tl.constexpr, HAS_EMA: tl.constexpr, HAS_COPY: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    master, gradient = piece_of(table, 0, pieces, tl.float32), piece_of(table, 1, pieces, GRADIENT)
    moment1, moment2 = piece_of(table, 2, pieces, tl.float32), piece_of(table, 3, pieces, tl.float32)
    addresses = master.to(tl.int64) | gradient.to(tl.int64) | moment1.to(tl.int64) | moment2.to(tl.int64)
    ema, copy = master, master
    if HAS_EMA:
        ema = piece_of(table, 4, pieces, tl.float32)
        addresses |= ema.to(tl.int64)
    if HAS_COPY:
        copy = piece_of(table, 4 + HAS_EMA, pieces, COPY)
        addresses |= copy.to(tl.int64)
    count = tl.load(table + (4 + HAS_EMA + HAS_COPY) * pieces + tl.program_id(0)).to(tl.int32)
    factor = tl.load(clip_factor).to(tl.float32)
    if addresses % 16 == 0:
        _update_piece(
            master, gradient, moment1, moment2, ema, copy, count, factor, decay, beta1_rest, beta2, beta2_rest,
            root_correction2, epsilon, rate, ema_decay, ema_rest, HAS_EMA, HAS_COPY, True, BLOCK,
        )  # fmt: skip
    else:
        _update_piece(
            master, gradient, moment1, moment2, ema, copy, count, factor, decay, beta1_rest, beta2, beta2_rest,
            root_correction2, epsilon, rate, ema_decay, ema_rest, HAS_EMA, HAS_COPY, False, BLOCK,
        )  # fmt: skip


CONFIG = Config(rows=1, columns=1024, warps=8)
"""Four values a thread: with eight, which bfloat16 would like, fp32 stores would have to change hands before."""


def update(
    masters: Sequence[Tensor], gradients: Sequence[Tensor], moments1: Sequence[Tensor], moments2: Sequence[Tensor],
    emas: Sequence[Tensor], copies: Sequence[Tensor], clip_factor: Tensor, lr: float, beta1: float, beta2: float,
    epsilon: float, weight_decay: float, step: int, ema_decay: float, config: Config = CONFIG,
) -> Iterator[Launch]:  # fmt: skip
    table = chunk_table(masters, gradients, moments1, moments2, *filter(None, (emas, copies)))
    pieces = table.shape[1]
    yield Launch(
        kernel=_update,
        grid=(pieces,),
        arguments={
            "table": table, "clip_factor": clip_factor, "pieces": pieces,
            **numbers(lr, beta1, beta2, epsilon, weight_decay, step, ema_decay), "GRADIENT": kind_of(gradients[0]),
            "COPY": kind_of(copies[0]) if copies else None, "HAS_EMA": bool(emas), "HAS_COPY": bool(copies),
            "BLOCK": config.columns,
        },
        num_warps=config.warps,
    )  # fmt: skip


adamw = operator("gpu_triton", runs(update))

COMPILED = compiled(update)
