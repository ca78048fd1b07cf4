"""modulated_norm in Triton for Ascend: as many programs as vector cores, each with rows of one sample.

Modulation is loaded once a program. A tile holds whole rows: mean, variance and result come from the unified buffer.
Backward keeps the sums for shift and scale as one row each; formulas: gpu_triton.py.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ..ascend_memory import Live, Tile, shared_by, tile, vector_cores, whole_row
from ..compilation import KINDS, Compilation, Launch, compilations, on_meta, runs
from ..triton_rows import load_row, load_rows, row_moments, store_rows, strides, sum_partials, through_norm, two_parts
from .operator import operator


@triton.jit(do_not_specialize=["tokens", "samples", "programs"])
def _forward(
    x, shift, scale, out, mean, reciprocal, tokens, samples, programs, x_s, x_b, x_d, shift_b, shift_d, scale_b,
    scale_d, epsilon, ROWS: tl.constexpr, WIDTH: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    program, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    scale_first, scale_second = load_row(scale + sample * scale_b, scale_d, WIDTH, HEAD, TAIL)
    shift_first, shift_second = load_row(shift + sample * shift_b, shift_d, WIDTH, HEAD, TAIL)
    for begin in range(program * ROWS, tokens, programs * ROWS):
        row = begin + tl.arange(0, ROWS)[:, None].to(tl.int64)
        there = row < tokens
        place = row * samples + sample
        first, second = load_rows(x + row * x_s + sample * x_b, x_d, there, WIDTH, HEAD, TAIL)
        row_mean, row_reciprocal = row_moments(first, second, epsilon, WIDTH, HEAD, TAIL)
        tl.store(mean + place, row_mean, mask=there)
        tl.store(reciprocal + place, row_reciprocal, mask=there)
        first = (first - row_mean) * row_reciprocal * (1.0 + scale_first) + shift_first
        second = (second - row_mean) * row_reciprocal * (1.0 + scale_second) + shift_second
        store_rows(out + place * WIDTH, first, second, there, WIDTH, HEAD, TAIL)


@triton.jit(do_not_specialize=["tokens", "samples", "programs"])
def _backward(
    d_out, x, scale, mean, reciprocal, d_x, partials, tokens, samples, programs, d_out_s, d_out_b, d_out_d, x_s, x_b,
    x_d, scale_b, scale_d, ROWS: tl.constexpr, WIDTH: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    program, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    scale_first, scale_second = load_row(scale + sample * scale_b, scale_d, WIDTH, HEAD, TAIL)
    shift_sum, shift_sum_tail = tl.full([HEAD], 0.0, tl.float32), tl.full([TAIL], 0.0, tl.float32)
    scale_sum, scale_sum_tail = tl.full([HEAD], 0.0, tl.float32), tl.full([TAIL], 0.0, tl.float32)
    for begin in range(program * ROWS, tokens, programs * ROWS):
        row = begin + tl.arange(0, ROWS)[:, None].to(tl.int64)
        there = row < tokens
        place = row * samples + sample
        d_first, d_second = load_rows(d_out + row * d_out_s + sample * d_out_b, d_out_d, there, WIDTH, HEAD, TAIL)
        n_first, n_second = load_rows(x + row * x_s + sample * x_b, x_d, there, WIDTH, HEAD, TAIL)
        row_mean = tl.load(mean + place, mask=there, other=0.0)
        row_reciprocal = tl.load(reciprocal + place, mask=there, other=0.0)
        n_first, n_second = (n_first - row_mean) * row_reciprocal, (n_second - row_mean) * row_reciprocal
        shift_sum, shift_sum_tail = shift_sum + tl.sum(d_first, axis=0), shift_sum_tail + tl.sum(d_second, axis=0)
        scale_sum += tl.sum(d_first * n_first, axis=0)
        scale_sum_tail += tl.sum(d_second * n_second, axis=0)
        d_first, d_second = d_first * (1.0 + scale_first), d_second * (1.0 + scale_second)
        d_first, d_second = through_norm(d_first, d_second, n_first, n_second, row_reciprocal, WIDTH)
        store_rows(d_x + place * WIDTH, d_first, d_second, there, WIDTH, HEAD, TAIL)
    head, tail = tl.arange(0, HEAD), HEAD + tl.arange(0, TAIL)
    place = partials + (program * samples + sample) * WIDTH
    tl.store(place + head, shift_sum)
    tl.store(place + tail, shift_sum_tail, mask=tail < WIDTH)
    place += programs.to(tl.int64) * samples * WIDTH
    tl.store(place + head, scale_sum)
    tl.store(place + tail, scale_sum_tail, mask=tail < WIDTH)


FORWARD = Live(streamed=2, casts=1, work=3, once=2)
"""x and out; the rows, those apart from their mean, a product; scale and shift."""
BACKWARD = Live(streamed=3, work=4, once=5)
"""d_out, x and d_x; the gradient, the normalised rows, two products; scale, both sums and what is added to them."""
_MOST_ROWS = 64


def config(width: int, dtype: torch.dtype, live: Live) -> Tile:
    return tile("modulated_norm by npu_triton", live, whole_row(*two_parts(width)), dtype, _MOST_ROWS)


def forward(
    x_SBD, shift_BD, scale_BD, epsilon, out_SBD, mean_SB, reciprocal_SB, tiled: Tile | None = None
) -> Iterator[Launch]:
    tokens, samples, width = x_SBD.shape
    tiled = tiled or config(width, x_SBD.dtype, FORWARD)
    head, tail = two_parts(width)
    programs = shared_by(vector_cores(x_SBD), triton.cdiv(tokens, tiled.rows), samples)
    yield Launch(
        kernel=_forward,
        grid=(programs, samples),
        arguments={
            "x": x_SBD, "shift": shift_BD, "scale": scale_BD, "out": out_SBD, "mean": mean_SB,
            "reciprocal": reciprocal_SB, "tokens": tokens, "samples": samples, "programs": programs,
            **strides(x_SBD=x_SBD, shift_BD=shift_BD, scale_BD=scale_BD), "epsilon": epsilon, "ROWS": tiled.rows,
            "WIDTH": width, "HEAD": head, "TAIL": tail,
        },
        unified_buffer=tiled.bytes,
    )  # fmt: skip


def backward(
    d_out_SBD, x_SBD, scale_BD, mean_SB, reciprocal_SB, d_x_SBD, d_shift_BD, d_scale_BD, tiled: Tile | None = None
) -> Iterator[Launch]:
    tokens, samples, width = x_SBD.shape
    tiled = tiled or config(width, x_SBD.dtype, BACKWARD)
    head, tail = two_parts(width)
    programs = shared_by(vector_cores(x_SBD), triton.cdiv(tokens, tiled.rows), samples)
    partials = x_SBD.new_empty(2, programs, samples * width, dtype=torch.float32)
    yield Launch(
        kernel=_backward,
        grid=(programs, samples),
        arguments={
            "d_out": d_out_SBD, "x": x_SBD, "scale": scale_BD, "mean": mean_SB, "reciprocal": reciprocal_SB,
            "d_x": d_x_SBD, "partials": partials, "tokens": tokens, "samples": samples, "programs": programs,
            **strides(d_out_SBD=d_out_SBD, x_SBD=x_SBD, scale_BD=scale_BD), "ROWS": tiled.rows, "WIDTH": width,
            "HEAD": head, "TAIL": tail,
        },
        unified_buffer=tiled.bytes,
    )  # fmt: skip
    yield sum_partials(partials, d_shift_BD, d_scale_BD)


modulated_norm = operator("npu_triton", runs(forward), runs(backward))


def _compiled(kind: torch.dtype, rows: torch.dtype) -> Iterator[Compilation]:
    for tokens, samples, width in ((41472, 1, 2432), (13, 3, 70)):
        x_SBD, row_BD = on_meta(kind, tokens, samples, width), on_meta(rows, samples, width)
        value_SB, label = on_meta(torch.float32, tokens, samples), f"B {samples}, D {width}, {kind}, rows {rows}"
        yield from compilations(label, forward(x_SBD, row_BD, row_BD, 1e-6, x_SBD, value_SB, value_SB))
        yield from compilations(label, backward(x_SBD, x_SBD, row_BD, value_SB, value_SB, x_SBD, row_BD, row_BD))


COMPILED = tuple(each for kinds in KINDS for each in _compiled(*kinds))
