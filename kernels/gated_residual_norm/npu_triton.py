"""gated_residual_norm in Triton for Ascend: as many programs as vector cores, each with rows of one sample.

Modulation and gate are loaded once a program. Backward keeps the sums for gate, shift and scale as one row each;
formulas: gpu_triton.py.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ..ascend_memory import EVERY, Live, Tile, shared_by, tile, vector_cores, whole_row
from ..compilation import KINDS, Compilation, Launch, compilations, on_meta, runs
from ..triton_rows import load_row, load_rows, row_moments, store_rows, strides, sum_partials, through_norm, two_parts
from .operator import operator


@triton.jit(do_not_specialize=["tokens", "samples", "programs"])
def _forward(
    x, gate, update, shift, scale, out, normed, mean, reciprocal, tokens, samples, programs, x_s, x_b, x_d, gate_b,
    gate_d, update_s, update_b, update_d, shift_b, shift_d, scale_b, scale_d, epsilon,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    program, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    factor, factor_tail = load_row(gate + sample * gate_b, gate_d, WIDTH, HEAD, TAIL)
    scale_first, scale_second = load_row(scale + sample * scale_b, scale_d, WIDTH, HEAD, TAIL)
    shift_first, shift_second = load_row(shift + sample * shift_b, shift_d, WIDTH, HEAD, TAIL)
    kind = out.dtype.element_ty
    for begin in range(program * ROWS, tokens, programs * ROWS):
        row = begin + tl.arange(0, ROWS)[:, None].to(tl.int64)
        there = row < tokens
        place = row * samples + sample
        first, second = load_rows(x + row * x_s + sample * x_b, x_d, there, WIDTH, HEAD, TAIL)
        added, added_tail = load_rows(update + row * update_s + sample * update_b, update_d, there, WIDTH, HEAD, TAIL)
        first = (first + factor * added).to(kind).to(tl.float32)
        second = (second + factor_tail * added_tail).to(kind).to(tl.float32)
        store_rows(out + place * WIDTH, first, second, there, WIDTH, HEAD, TAIL)
        row_mean, row_reciprocal = row_moments(first, second, epsilon, WIDTH, HEAD, TAIL)
        tl.store(mean + place, row_mean, mask=there)
        tl.store(reciprocal + place, row_reciprocal, mask=there)
        first = (first - row_mean) * row_reciprocal * (1.0 + scale_first) + shift_first
        second = (second - row_mean) * row_reciprocal * (1.0 + scale_second) + shift_second
        store_rows(normed + place * WIDTH, first, second, there, WIDTH, HEAD, TAIL)


@triton.jit(do_not_specialize=["tokens", "samples", "programs"])
def _backward(
    d_out, d_normed, out, gate, update, scale, mean, reciprocal, d_x, d_update, partials, tokens, samples, programs,
    d_out_s, d_out_b, d_out_d, d_normed_s, d_normed_b, d_normed_d, out_s, out_b, out_d, gate_b, gate_d, update_s,
    update_b, update_d, scale_b, scale_d, ROWS: tl.constexpr, WIDTH: tl.constexpr, HEAD: tl.constexpr,
    TAIL: tl.constexpr,
):  # fmt: skip
    program, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    scale_first, scale_second = load_row(scale + sample * scale_b, scale_d, WIDTH, HEAD, TAIL)
    factor, factor_tail = load_row(gate + sample * gate_b, gate_d, WIDTH, HEAD, TAIL)
    gate_sum, gate_sum_tail = tl.full([HEAD], 0.0, tl.float32), tl.full([TAIL], 0.0, tl.float32)
    shift_sum, shift_sum_tail = tl.full([HEAD], 0.0, tl.float32), tl.full([TAIL], 0.0, tl.float32)
    scale_sum, scale_sum_tail = tl.full([HEAD], 0.0, tl.float32), tl.full([TAIL], 0.0, tl.float32)
    for begin in range(program * ROWS, tokens, programs * ROWS):
        row = begin + tl.arange(0, ROWS)[:, None].to(tl.int64)
        there = row < tokens
        place = row * samples + sample
        start = d_normed + row * d_normed_s + sample * d_normed_b
        d_first, d_second = load_rows(start, d_normed_d, there, WIDTH, HEAD, TAIL)
        n_first, n_second = load_rows(out + row * out_s + sample * out_b, out_d, there, WIDTH, HEAD, TAIL)
        row_mean = tl.load(mean + place, mask=there, other=0.0)
        row_reciprocal = tl.load(reciprocal + place, mask=there, other=0.0)
        n_first, n_second = (n_first - row_mean) * row_reciprocal, (n_second - row_mean) * row_reciprocal
        shift_sum, shift_sum_tail = shift_sum + tl.sum(d_first, axis=0), shift_sum_tail + tl.sum(d_second, axis=0)
        scale_sum += tl.sum(d_first * n_first, axis=0)
        scale_sum_tail += tl.sum(d_second * n_second, axis=0)
        d_first, d_second = d_first * (1.0 + scale_first), d_second * (1.0 + scale_second)
        d_first, d_second = through_norm(d_first, d_second, n_first, n_second, row_reciprocal, WIDTH)
        if d_out is not None:
            passed, passed_tail = load_rows(d_out + row * d_out_s + sample * d_out_b, d_out_d, there, WIDTH, HEAD, TAIL)
            d_first, d_second = d_first + passed, d_second + passed_tail
        store_rows(d_x + place * WIDTH, d_first, d_second, there, WIDTH, HEAD, TAIL)
        added, added_tail = load_rows(update + row * update_s + sample * update_b, update_d, there, WIDTH, HEAD, TAIL)
        gate_sum, gate_sum_tail = (
            gate_sum + tl.sum(d_first * added, axis=0), gate_sum_tail + tl.sum(d_second * added_tail, axis=0)
        )  # fmt: skip
        store_rows(d_update + place * WIDTH, factor * d_first, factor_tail * d_second, there, WIDTH, HEAD, TAIL)
    place = partials + (program * samples + sample) * WIDTH
    apart = programs.to(tl.int64) * samples * WIDTH
    head, tail = tl.arange(0, HEAD), HEAD + tl.arange(0, TAIL)
    tl.store(place + head, gate_sum)
    tl.store(place + tail, gate_sum_tail, mask=tail < WIDTH)
    tl.store(place + apart + head, shift_sum)
    tl.store(place + apart + tail, shift_sum_tail, mask=tail < WIDTH)
    tl.store(place + 2 * apart + head, scale_sum)
    tl.store(place + 2 * apart + tail, scale_sum_tail, mask=tail < WIDTH)


FORWARD = Live(streamed=4, casts=1, work=3, once=3)
"""x, update, out and normed; the rows, those apart from their mean, a product; gate, scale and shift."""
BACKWARD = Live(streamed=4, casts=5, work=3, once=6)
"""Of d_normed, out, d_out, update, d_x and d_update as many as are on their way at once; the gradient, the normalised
rows, a product; gate, scale, the three sums and what is added to one."""
SEVERAL = Live(streamed=4, casts=5, work=9, once=6)
"""Backward with more than one row in a tile: sums over rows need tiles of their own."""
_MOST_ROWS = 64


def config(width: int, dtype: torch.dtype, live: Live, most: int = _MOST_ROWS) -> Tile:
    return tile("gated_residual_norm by npu_triton", live, whole_row(*two_parts(width)), dtype, most)


def backward_config(width: int, dtype: torch.dtype) -> Tile:
    columns = whole_row(*two_parts(width))
    fits = SEVERAL.bytes(2, columns, dtype.itemsize) <= EVERY.unified_buffer
    return config(width, dtype, SEVERAL) if fits else config(width, dtype, BACKWARD, most=1)


def forward(
    x_SBD, gate_BD, update_SBD, shift_BD, scale_BD, epsilon, out_SBD, normed_SBD, mean_SB, reciprocal_SB,
    tiled: Tile | None = None,
) -> Iterator[Launch]:  # fmt: skip
    tokens, samples, width = x_SBD.shape
    tiled = tiled or config(width, x_SBD.dtype, FORWARD)
    head, tail = two_parts(width)
    programs = shared_by(vector_cores(x_SBD), triton.cdiv(tokens, tiled.rows), samples)
    yield Launch(
        kernel=_forward,
        grid=(programs, samples),
        arguments={
            "x": x_SBD, "gate": gate_BD, "update": update_SBD, "shift": shift_BD, "scale": scale_BD, "out": out_SBD,
            "normed": normed_SBD, "mean": mean_SB, "reciprocal": reciprocal_SB, "tokens": tokens, "samples": samples,
            "programs": programs, **strides(x_SBD=x_SBD, gate_BD=gate_BD, update_SBD=update_SBD),
            **strides(shift_BD=shift_BD, scale_BD=scale_BD), "epsilon": epsilon, "ROWS": tiled.rows, "WIDTH": width,
            "HEAD": head, "TAIL": tail,
        },
        unified_buffer=tiled.bytes,
    )  # fmt: skip


def backward(
    d_out_SBD, d_normed_SBD, out_SBD, gate_BD, update_SBD, scale_BD, mean_SB, reciprocal_SB, d_x_SBD, d_gate_BD,
    d_update_SBD, d_shift_BD, d_scale_BD, tiled: Tile | None = None,
) -> Iterator[Launch]:  # fmt: skip
    tokens, samples, width = out_SBD.shape
    tiled = tiled or backward_config(width, out_SBD.dtype)
    head, tail = two_parts(width)
    programs = shared_by(vector_cores(out_SBD), triton.cdiv(tokens, tiled.rows), samples)
    partials = out_SBD.new_empty(3, programs, samples * width, dtype=torch.float32)
    passed_by = out_SBD if d_out_SBD is None else d_out_SBD
    yield Launch(
        kernel=_backward,
        grid=(programs, samples),
        arguments={
            "d_out": d_out_SBD, "d_normed": d_normed_SBD, "out": out_SBD, "gate": gate_BD, "update": update_SBD,
            "scale": scale_BD, "mean": mean_SB, "reciprocal": reciprocal_SB, "d_x": d_x_SBD, "d_update": d_update_SBD,
            "partials": partials, "tokens": tokens, "samples": samples, "programs": programs,
            **strides(d_out_SBD=passed_by, d_normed_SBD=d_normed_SBD, out_SBD=out_SBD, gate_BD=gate_BD),
            **strides(update_SBD=update_SBD, scale_BD=scale_BD), "ROWS": tiled.rows, "WIDTH": width, "HEAD": head,
            "TAIL": tail,
        },
        unified_buffer=tiled.bytes,
    )  # fmt: skip
    yield sum_partials(partials, d_gate_BD, d_shift_BD, d_scale_BD)


gated_residual_norm = operator("npu_triton", runs(forward), runs(backward))


def _compiled(kind: torch.dtype, rows: torch.dtype) -> Iterator[Compilation]:
    for tokens, samples, width in ((41472, 1, 2432), (13, 3, 70)):
        x_SBD, row_BD = on_meta(kind, tokens, samples, width), on_meta(rows, samples, width)
        value_SB, label = on_meta(torch.float32, tokens, samples), f"B {samples}, D {width}, {kind}, rows {rows}"
        rows_BD, moments = (row_BD,) * 2, (value_SB,) * 2
        yield from compilations(label, forward(x_SBD, row_BD, x_SBD, *rows_BD, 1e-6, x_SBD, x_SBD, *moments))
        given = (x_SBD, row_BD, x_SBD, row_BD, *moments, x_SBD, row_BD, x_SBD, *rows_BD)
        yield from compilations(label, backward(x_SBD, x_SBD, *given))
        yield from compilations(f"{label}, out unused", list(backward(None, x_SBD, *given))[:1])


COMPILED = tuple(each for kinds in KINDS for each in _compiled(*kinds))
