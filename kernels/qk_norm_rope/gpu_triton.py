"""qk_norm_rope in Triton: queries and keys of the same heads in one program, which reads their rotation once.

A row is one head of one token; a program holds ROWS of them, in two halves [ROWS, R], which is what rotates. In
backward it visits every so-manieth block of rows and keeps the sums for both gains on the way. With n = x r, r the
reciprocal root mean square, and (d_1, d_2) the halves of d_out:

    m_1 = d_1 cos + d_2 sin        m_2 = d_2 cos - d_1 sin        (the rotation backwards)
    d_gain = sum(m n)              d_x = r (m gain - n mean_E(m gain n))

Bytes: forward reads q and k and writes both, backward reads q, k and their gradients and writes both; where q, k and v
are slices of one product, runs of 2 E values are read and E are skipped.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ..compilation import KINDS, Compilation, Config, Launch, compilations, on_meta, runs
from ..triton_rows import processors, strides, sum_partials
from .operator import operator


@triton.jit
def _load_halves(pointers, stride, there, HALF: tl.constexpr, BLOCK: tl.constexpr):
    """Both halves, fp32, of the heads that begin at pointers [ROWS, 1]."""
    column = tl.arange(0, BLOCK)[None, :]
    inside = there & (column < HALF)
    first = tl.load(pointers + column.to(tl.int64) * stride, mask=inside, other=0.0)
    second = tl.load(pointers + (column + HALF).to(tl.int64) * stride, mask=inside, other=0.0)
    return first.to(tl.float32), second.to(tl.float32)


@triton.jit
def _store_halves(pointers, first, second, there, HALF: tl.constexpr, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)[None, :]
    inside = there & (column < HALF)
    tl.store(pointers + column, first.to(pointers.dtype.element_ty), mask=inside)
    tl.store(pointers + column + HALF, second.to(pointers.dtype.element_ty), mask=inside)


@triton.jit
def load_gain(gain, stride, HALF: tl.constexpr, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)[None, :]
    first = tl.load(gain + column * stride, mask=column < HALF, other=0.0)
    second = tl.load(gain + (column + HALF) * stride, mask=column < HALF, other=0.0)
    return first.to(tl.float32), second.to(tl.float32)


@triton.jit
def load_rotation(cos, sin, token, cos_s, cos_r, sin_s, sin_r, there, HALF: tl.constexpr, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)[None, :]
    inside = there & (column < HALF)
    cosine = tl.load(cos + token * cos_s + column * cos_r, mask=inside, other=0.0)
    sine = tl.load(sin + token * sin_s + column * sin_r, mask=inside, other=0.0)
    return cosine, sine


@triton.jit
def norm_and_rotate(
    pointers, stride, gain_first, gain_second, cosine, sine, out, reciprocal, row, there, epsilon,
    ROTATED: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first, second = _load_halves(pointers, stride, there, HALF, BLOCK)
    mean_square = tl.sum(first * first + second * second, axis=1)[:, None] / (2 * HALF)
    scale = 1.0 / tl.sqrt_rn(mean_square + epsilon)
    tl.store(reciprocal + row, scale, mask=there)
    first, second = first * scale * gain_first, second * scale * gain_second
    if ROTATED:
        first, second = first * cosine - second * sine, second * cosine + first * sine
    _store_halves(out + row * (2 * HALF), first, second, there, HALF, BLOCK)


@triton.jit
def backward_of_one(
    d_pointers, d_stride, pointers, stride, gain_first, gain_second, cosine, sine, reciprocal, d_x, row, there,
    ROTATED: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes d_x and returns this block's parts of d_gain."""
    d_first, d_second = _load_halves(d_pointers, d_stride, there, HALF, BLOCK)
    n_first, n_second = _load_halves(pointers, stride, there, HALF, BLOCK)
    scale = tl.load(reciprocal + row, mask=there, other=0.0)
    n_first, n_second = n_first * scale, n_second * scale
    if ROTATED:
        d_first, d_second = d_first * cosine + d_second * sine, d_second * cosine - d_first * sine
    sum_first, sum_second = d_first * n_first, d_second * n_second
    slope = tl.sum(sum_first * gain_first + sum_second * gain_second, axis=1)[:, None] / (2 * HALF)
    d_first = (d_first * gain_first - n_first * slope) * scale
    d_second = (d_second * gain_second - n_second * slope) * scale
    _store_halves(d_x + row * (2 * HALF), d_first, d_second, there, HALF, BLOCK)
    return sum_first, sum_second


@triton.jit(do_not_specialize=["rows", "samples"])
def _forward(
    q, k, q_gain, k_gain, cos, sin, q_out, k_out, q_reciprocal, k_reciprocal, rows, samples, q_s, q_b, q_h, q_e, k_s,
    k_b, k_h, k_e, q_gain_e, k_gain_e, cos_s, cos_r, sin_s, sin_r, epsilon, HEADS: tl.constexpr, ROTATED: tl.constexpr,
    ROWS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    there = row < rows
    head, token = (row % HEADS).to(tl.int64), row // HEADS
    sample, token = (token % samples).to(tl.int64), (token // samples).to(tl.int64)
    row = row.to(tl.int64)
    cosine, sine = 1.0, 0.0
    if ROTATED:
        cosine, sine = load_rotation(cos, sin, token, cos_s, cos_r, sin_s, sin_r, there, HALF, BLOCK)
    gain_first, gain_second = load_gain(q_gain, q_gain_e, HALF, BLOCK)
    norm_and_rotate(
        q + token * q_s + sample * q_b + head * q_h, q_e, gain_first, gain_second, cosine, sine, q_out, q_reciprocal,
        row, there, epsilon, ROTATED, HALF, BLOCK,
    )  # fmt: skip
    gain_first, gain_second = load_gain(k_gain, k_gain_e, HALF, BLOCK)
    norm_and_rotate(
        k + token * k_s + sample * k_b + head * k_h, k_e, gain_first, gain_second, cosine, sine, k_out, k_reciprocal,
        row, there, epsilon, ROTATED, HALF, BLOCK,
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows", "samples", "programs"])
def _backward(
    d_q_out, d_k_out, q, k, q_gain, k_gain, cos, sin, q_reciprocal, k_reciprocal, d_q, d_k, partials, rows, samples,
    programs, d_q_out_s, d_q_out_b, d_q_out_h, d_q_out_e, d_k_out_s, d_k_out_b, d_k_out_h, d_k_out_e, q_s, q_b, q_h,
    q_e, k_s, k_b, k_h, k_e, q_gain_e, k_gain_e, cos_s, cos_r, sin_s, sin_r, HEADS: tl.constexpr,
    ROTATED: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    q_gain_first, q_gain_second = load_gain(q_gain, q_gain_e, HALF, BLOCK)
    k_gain_first, k_gain_second = load_gain(k_gain, k_gain_e, HALF, BLOCK)
    q_first, q_second = tl.full([ROWS, BLOCK], 0.0, tl.float32), tl.full([ROWS, BLOCK], 0.0, tl.float32)
    k_first, k_second = tl.full([ROWS, BLOCK], 0.0, tl.float32), tl.full([ROWS, BLOCK], 0.0, tl.float32)
    for begin in tl.range(program * ROWS, rows, programs * ROWS, num_stages=STAGES):
        row = begin + tl.arange(0, ROWS)[:, None]
        there = row < rows
        head, token = (row % HEADS).to(tl.int64), row // HEADS
        sample, token = (token % samples).to(tl.int64), (token // samples).to(tl.int64)
        row = row.to(tl.int64)
        cosine, sine = 1.0, 0.0
        if ROTATED:
            cosine, sine = load_rotation(cos, sin, token, cos_s, cos_r, sin_s, sin_r, there, HALF, BLOCK)
        first, second = backward_of_one(
            d_q_out + token * d_q_out_s + sample * d_q_out_b + head * d_q_out_h, d_q_out_e,
            q + token * q_s + sample * q_b + head * q_h, q_e, q_gain_first, q_gain_second, cosine, sine, q_reciprocal,
            d_q, row, there, ROTATED, HALF, BLOCK,
        )  # fmt: skip
        q_first, q_second = q_first + first, q_second + second
        first, second = backward_of_one(
            d_k_out + token * d_k_out_s + sample * d_k_out_b + head * d_k_out_h, d_k_out_e,
            k + token * k_s + sample * k_b + head * k_h, k_e, k_gain_first, k_gain_second, cosine, sine, k_reciprocal,
            d_k, row, there, ROTATED, HALF, BLOCK,
        )  # fmt: skip
        k_first, k_second = k_first + first, k_second + second
    column = tl.arange(0, BLOCK)
    place = partials + program * (2 * HALF) + column
    tl.store(place, tl.sum(q_first, axis=0), mask=column < HALF)
    tl.store(place + HALF, tl.sum(q_second, axis=0), mask=column < HALF)
    place += programs * (2 * HALF)
    tl.store(place, tl.sum(k_first, axis=0), mask=column < HALF)
    tl.store(place + HALF, tl.sum(k_second, axis=0), mask=column < HALF)


def forward_config(width: int) -> Config:
    """A half of a head is 16 bytes for each of a few threads, so that a row's sum never leaves a warp."""
    return Config(rows=4096 // triton.next_power_of_2(width), warps=4)


def backward_config(width: int) -> Config:
    """Half of forward's rows: four sums take registers."""
    return Config(rows=2048 // triton.next_power_of_2(width), warps=4, stages=2, programs=3)


def forward(
    q_SBHE, k_SBHE, q_gain_E, k_gain_E, cos_SR, sin_SR, epsilon, q_out_SBHE, k_out_SBHE, q_reciprocal_SBH,
    k_reciprocal_SBH, config: Config | None = None,
) -> Iterator[Launch]:  # fmt: skip
    shared = _shared_arguments(q_SBHE, k_SBHE, q_gain_E, k_gain_E, cos_SR, sin_SR)
    config = config or forward_config(q_SBHE.shape[-1])
    yield Launch(
        kernel=_forward,
        grid=(triton.cdiv(shared["rows"], config.rows),),
        arguments=shared | {
            "q_out": q_out_SBHE, "k_out": k_out_SBHE, "q_reciprocal": q_reciprocal_SBH,
            "k_reciprocal": k_reciprocal_SBH, "epsilon": epsilon, "ROWS": config.rows,
        },
        num_warps=config.warps,
    )  # fmt: skip


def backward(
    d_q_out_SBHE, d_k_out_SBHE, q_SBHE, k_SBHE, q_gain_E, k_gain_E, cos_SR, sin_SR, q_reciprocal_SBH, k_reciprocal_SBH,
    d_q_SBHE, d_k_SBHE, d_q_gain_E, d_k_gain_E, config: Config | None = None,
) -> Iterator[Launch]:  # fmt: skip
    shared = _shared_arguments(q_SBHE, k_SBHE, q_gain_E, k_gain_E, cos_SR, sin_SR)
    config = config or backward_config(q_SBHE.shape[-1])
    programs = min(processors(q_SBHE) * config.programs, triton.cdiv(shared["rows"], 2 * config.rows))
    partials = q_SBHE.new_empty(2, programs, q_SBHE.shape[-1], dtype=torch.float32)
    yield Launch(
        kernel=_backward,
        grid=(programs,),
        arguments=shared | strides(d_q_out_SBHE=d_q_out_SBHE, d_k_out_SBHE=d_k_out_SBHE) | {
            "d_q_out": d_q_out_SBHE, "d_k_out": d_k_out_SBHE, "q_reciprocal": q_reciprocal_SBH,
            "k_reciprocal": k_reciprocal_SBH, "d_q": d_q_SBHE, "d_k": d_k_SBHE, "partials": partials,
            "programs": programs, "ROWS": config.rows, "STAGES": config.stages,
        },
        num_warps=config.warps,
    )  # fmt: skip
    yield sum_partials(partials, d_q_gain_E, d_k_gain_E)


def _shared_arguments(q_SBHE, k_SBHE, q_gain_E, k_gain_E, cos_SR, sin_SR) -> dict:
    tokens, samples, heads, width = q_SBHE.shape
    assert tokens * samples * heads < 2**31, "a head of 2^31 has no place in any memory"
    rotation = {"cos_s": 0, "cos_r": 0, "sin_s": 0, "sin_r": 0}
    if cos_SR is not None:
        rotation = strides(cos_SR=cos_SR, sin_SR=sin_SR)
    return {
        "q": q_SBHE, "k": k_SBHE, "q_gain": q_gain_E, "k_gain": k_gain_E, "cos": cos_SR, "sin": sin_SR,
        "rows": tokens * samples * heads, "samples": samples, **rotation,
        **strides(q_SBHE=q_SBHE, k_SBHE=k_SBHE, q_gain_E=q_gain_E, k_gain_E=k_gain_E), "HEADS": heads,
        "ROTATED": cos_SR is not None, "HALF": width // 2, "BLOCK": triton.next_power_of_2(width // 2),
    }  # fmt: skip


qk_norm_rope = operator("gpu_triton", runs(forward), runs(backward))


def _compiled(kind: torch.dtype, gains: torch.dtype) -> Iterator[Compilation]:
    q_SBHE, k_SBHE, _ = on_meta(kind, 41472, 1, 38, 3, 64).unbind(-2)
    out_SBHE, gain_E = on_meta(kind, 41472, 1, 38, 64), on_meta(gains, 64)
    value_SBH = on_meta(torch.float32, 41472, 1, 38)
    for table_SR in (on_meta(torch.float32, 41472, 32), None):
        label = f"E 64, {kind}, gains {gains}" + (", rotated" if table_SR is not None else "")
        given = (q_SBHE, k_SBHE, gain_E, gain_E, table_SR, table_SR)
        yield from compilations(label, forward(*given, 1e-6, out_SBHE, out_SBHE, value_SBH, value_SBH))
        gradients = (value_SBH, value_SBH, out_SBHE, out_SBHE, gain_E, gain_E)
        yield from compilations(label, backward(out_SBHE, out_SBHE, *given, *gradients))


COMPILED = tuple(each for kinds in KINDS for each in _compiled(*kinds))
