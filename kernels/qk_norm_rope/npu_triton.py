"""qk_norm_rope in Triton for Ascend: a program takes blocks of one sample's tokens and goes through the heads, so that
a block's rotation is loaded once and every access is a plain matrix with strides: the copy engine takes no rows that
lie anywhere, and what it cannot take is loaded row by row, without its mask.

Halves are [ROWS, R], as in gpu_triton.py, where the formulas stand. Backward keeps the sums for both gains as one row
each.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ..ascend_memory import Live, Tile, shared_by, tile, vector_cores
from ..compilation import KINDS, Compilation, Launch, compilations, on_meta, runs
from ..triton_rows import strides, sum_partials
from .gpu_triton import backward_of_one, load_gain, load_rotation, norm_and_rotate
from .operator import operator


@triton.jit(do_not_specialize=["tokens", "samples", "programs"])
def _forward(
    q, k, q_gain, k_gain, cos, sin, q_out, k_out, q_reciprocal, k_reciprocal, tokens, samples, programs, q_s, q_b, q_h,
    q_e, k_s, k_b, k_h, k_e, q_gain_e, k_gain_e, cos_s, cos_r, sin_s, sin_r, epsilon, HEADS: tl.constexpr,
    ROTATED: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    q_first, q_second = load_gain(q_gain, q_gain_e, HALF, BLOCK)
    k_first, k_second = load_gain(k_gain, k_gain_e, HALF, BLOCK)
    for begin in range(program * ROWS, tokens, programs * ROWS):
        token = begin + tl.arange(0, ROWS)[:, None].to(tl.int64)
        there = token < tokens
        cosine, sine = 1.0, 0.0
        if ROTATED:
            cosine, sine = load_rotation(cos, sin, token, cos_s, cos_r, sin_s, sin_r, there, HALF, BLOCK)
        for head in range(HEADS):
            row = (token * samples + sample) * HEADS + head
            norm_and_rotate(
                q + token * q_s + sample * q_b + head * q_h, q_e, q_first, q_second, cosine, sine, q_out, q_reciprocal,
                row, there, epsilon, ROTATED, HALF, BLOCK,
            )  # fmt: skip
            norm_and_rotate(
                k + token * k_s + sample * k_b + head * k_h, k_e, k_first, k_second, cosine, sine, k_out, k_reciprocal,
                row, there, epsilon, ROTATED, HALF, BLOCK,
            )  # fmt: skip


@triton.jit(do_not_specialize=["tokens", "samples", "programs"])
def _backward(
    d_q_out, d_k_out, q, k, q_gain, k_gain, cos, sin, q_reciprocal, k_reciprocal, d_q, d_k, partials, tokens, samples,
    programs, d_q_out_s, d_q_out_b, d_q_out_h, d_q_out_e, d_k_out_s, d_k_out_b, d_k_out_h, d_k_out_e, q_s, q_b, q_h,
    q_e, k_s, k_b, k_h, k_e, q_gain_e, k_gain_e, cos_s, cos_r, sin_s, sin_r, HEADS: tl.constexpr,
    ROTATED: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    q_gain_first, q_gain_second = load_gain(q_gain, q_gain_e, HALF, BLOCK)
    k_gain_first, k_gain_second = load_gain(k_gain, k_gain_e, HALF, BLOCK)
    q_sum, q_sum_second = tl.full([BLOCK], 0.0, tl.float32), tl.full([BLOCK], 0.0, tl.float32)
    k_sum, k_sum_second = tl.full([BLOCK], 0.0, tl.float32), tl.full([BLOCK], 0.0, tl.float32)
    for begin in range(program * ROWS, tokens, programs * ROWS):
        token = begin + tl.arange(0, ROWS)[:, None].to(tl.int64)
        there = token < tokens
        cosine, sine = 1.0, 0.0
        if ROTATED:
            cosine, sine = load_rotation(cos, sin, token, cos_s, cos_r, sin_s, sin_r, there, HALF, BLOCK)
        for head in range(HEADS):
            row = (token * samples + sample) * HEADS + head
            first, second = backward_of_one(
                d_q_out + token * d_q_out_s + sample * d_q_out_b + head * d_q_out_h, d_q_out_e,
                q + token * q_s + sample * q_b + head * q_h, q_e, q_gain_first, q_gain_second, cosine, sine,
                q_reciprocal, d_q, row, there, ROTATED, HALF, BLOCK,
            )  # fmt: skip
            q_sum, q_sum_second = q_sum + tl.sum(first, axis=0), q_sum_second + tl.sum(second, axis=0)
            first, second = backward_of_one(
                d_k_out + token * d_k_out_s + sample * d_k_out_b + head * d_k_out_h, d_k_out_e,
                k + token * k_s + sample * k_b + head * k_h, k_e, k_gain_first, k_gain_second, cosine, sine,
                k_reciprocal, d_k, row, there, ROTATED, HALF, BLOCK,
            )  # fmt: skip
            k_sum, k_sum_second = k_sum + tl.sum(first, axis=0), k_sum_second + tl.sum(second, axis=0)
    column = tl.arange(0, BLOCK)
    place = partials + (sample * programs + program) * (2 * HALF) + column
    tl.store(place, q_sum, mask=column < HALF)
    tl.store(place + HALF, q_sum_second, mask=column < HALF)
    place += tl.num_programs(1).to(tl.int64) * programs * (2 * HALF)
    tl.store(place, k_sum, mask=column < HALF)
    tl.store(place + HALF, k_sum_second, mask=column < HALF)


FORWARD = Live(streamed=8, casts=4, work=9, once=18)
"""Halves of q, k and both results; cosine and sine, the halves, products and sums of them; both gains' halves."""
BACKWARD = Live(streamed=12, casts=8, work=25, once=18)
"""Halves of q, k, both gradients and both results; rotation, halves, products; gains, sums, what is added to them."""
_MOST_ROWS = 128


def config(q_SBHE, live: Live) -> Tile:
    """A tile holds halves of heads; no more rows than leave each core some where there are few tokens."""
    tokens, samples, _, width = q_SBHE.shape
    most = min(_MOST_ROWS, max(1, tokens * samples // vector_cores(q_SBHE)))
    return tile("qk_norm_rope by npu_triton", live, triton.next_power_of_2(width // 2), q_SBHE.dtype, most)


def forward(
    q_SBHE, k_SBHE, q_gain_E, k_gain_E, cos_SR, sin_SR, epsilon, q_out_SBHE, k_out_SBHE, q_reciprocal_SBH,
    k_reciprocal_SBH, tiled: Tile | None = None,
) -> Iterator[Launch]:  # fmt: skip
    tiled = tiled or config(q_SBHE, FORWARD)
    shared = _shared_arguments(q_SBHE, k_SBHE, q_gain_E, k_gain_E, cos_SR, sin_SR, tiled)
    yield Launch(
        kernel=_forward,
        grid=(shared["programs"], shared["samples"]),
        arguments=shared | {
            "q_out": q_out_SBHE, "k_out": k_out_SBHE, "q_reciprocal": q_reciprocal_SBH,
            "k_reciprocal": k_reciprocal_SBH, "epsilon": epsilon,
        },
        unified_buffer=tiled.bytes,
    )  # fmt: skip


def backward(
    d_q_out_SBHE, d_k_out_SBHE, q_SBHE, k_SBHE, q_gain_E, k_gain_E, cos_SR, sin_SR, q_reciprocal_SBH, k_reciprocal_SBH,
    d_q_SBHE, d_k_SBHE, d_q_gain_E, d_k_gain_E, tiled: Tile | None = None,
) -> Iterator[Launch]:  # fmt: skip
    tiled = tiled or config(q_SBHE, BACKWARD)
    shared = _shared_arguments(q_SBHE, k_SBHE, q_gain_E, k_gain_E, cos_SR, sin_SR, tiled)
    programs, samples = shared["programs"], shared["samples"]
    partials = q_SBHE.new_empty(2, programs * samples, q_SBHE.shape[-1], dtype=torch.float32)
    yield Launch(
        kernel=_backward,
        grid=(programs, samples),
        arguments=shared | strides(d_q_out_SBHE=d_q_out_SBHE, d_k_out_SBHE=d_k_out_SBHE) | {
            "d_q_out": d_q_out_SBHE, "d_k_out": d_k_out_SBHE, "q_reciprocal": q_reciprocal_SBH,
            "k_reciprocal": k_reciprocal_SBH, "d_q": d_q_SBHE, "d_k": d_k_SBHE, "partials": partials,
        },
        unified_buffer=tiled.bytes,
    )  # fmt: skip
    yield sum_partials(partials, d_q_gain_E, d_k_gain_E)


def _shared_arguments(q_SBHE, k_SBHE, q_gain_E, k_gain_E, cos_SR, sin_SR, tiled: Tile) -> dict:
    tokens, samples, heads, width = q_SBHE.shape
    rotation = {"cos_s": 0, "cos_r": 0, "sin_s": 0, "sin_r": 0}
    if cos_SR is not None:
        rotation = strides(cos_SR=cos_SR, sin_SR=sin_SR)
    return {
        "q": q_SBHE, "k": k_SBHE, "q_gain": q_gain_E, "k_gain": k_gain_E, "cos": cos_SR, "sin": sin_SR,
        "tokens": tokens, "samples": samples,
        "programs": shared_by(vector_cores(q_SBHE), triton.cdiv(tokens, tiled.rows), samples), **rotation,
        **strides(q_SBHE=q_SBHE, k_SBHE=k_SBHE, q_gain_E=q_gain_E, k_gain_E=k_gain_E), "HEADS": heads,
        "ROTATED": cos_SR is not None, "ROWS": tiled.rows, "HALF": width // 2, "BLOCK": tiled.columns,
    }  # fmt: skip


qk_norm_rope = operator("npu_triton", runs(forward), runs(backward))


def _compiled(kind: torch.dtype, gains: torch.dtype, tokens: int, samples: int, heads: int, width: int):
    q_SBHE, k_SBHE, _ = on_meta(kind, tokens, samples, heads, 3, width).unbind(-2)
    out_SBHE, gain_E = on_meta(kind, tokens, samples, heads, width), on_meta(gains, width)
    value_SBH = on_meta(torch.float32, tokens, samples, heads)
    for table_SR in (on_meta(torch.float32, tokens, width // 2), None):
        label = f"B {samples}, E {width}, {kind}, gains {gains}" + (", rotated" if table_SR is not None else "")
        given = (q_SBHE, k_SBHE, gain_E, gain_E, table_SR, table_SR)
        yield from compilations(label, forward(*given, 1e-6, out_SBHE, out_SBHE, value_SBH, value_SBH))
        gradients = (value_SBH, value_SBH, out_SBHE, out_SBHE, gain_E, gain_E)
        yield from compilations(label, backward(out_SBHE, out_SBHE, *given, *gradients))


COMPILED: tuple[Compilation, ...] = tuple(
    each for kinds in KINDS for sizes in ((41472, 1, 38, 64), (13, 3, 5, 14)) for each in _compiled(*kinds, *sizes)
)
