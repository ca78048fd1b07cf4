"""mlp_gelu in Triton for Ascend: as many programs as vector cores; each walks down a block of columns of one sample.
Backward keeps the sum for the bias as one row; the activation and its slope are gpu_triton.py's."""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ..ascend_memory import Live, Tile, column_block, shared_by, tile, vector_cores
from ..compilation import KINDS, Compilation, Launch, compilations, on_meta, runs
from ..triton_rows import strides, sum_partials
from .gpu_triton import activated, slope
from .operator import operator


@triton.jit(do_not_specialize=["tokens", "samples", "programs"])
def _forward(
    hidden, bias, out, tokens, samples, programs, hidden_s, hidden_b, hidden_m, bias_m,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    program, sample = tl.program_id(0), tl.program_id(2).to(tl.int64)
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)[None, :]
    inside = column < WIDTH
    offset = tl.load(bias + column * bias_m, mask=inside, other=0.0).to(tl.float32)
    for begin in range(program * ROWS, tokens, programs * ROWS):
        row = (begin + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        there = (row < tokens) & inside
        place = row * hidden_s + sample * hidden_b + column * hidden_m
        h = tl.load(hidden + place, mask=there, other=0.0).to(tl.float32) + offset
        result = activated(h).to(out.dtype.element_ty)
        tl.store(out + (row * samples + sample) * WIDTH + column, result, mask=there)


@triton.jit(do_not_specialize=["tokens", "samples", "programs"])
def _backward(
    d_out, hidden, bias, d_hidden, partials, tokens, samples, programs, d_out_s, d_out_b, d_out_m, hidden_s, hidden_b,
    hidden_m, bias_m, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    program, sample = tl.program_id(0), tl.program_id(2).to(tl.int64)
    columns = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
    column, inside = columns[None, :], columns[None, :] < WIDTH
    offset = tl.load(bias + column * bias_m, mask=inside, other=0.0).to(tl.float32)
    total = tl.full([COLUMNS], 0.0, tl.float32)
    for begin in range(program * ROWS, tokens, programs * ROWS):
        row = (begin + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        there = (row < tokens) & inside
        d = tl.load(d_out + row * d_out_s + sample * d_out_b + column * d_out_m, mask=there, other=0.0).to(tl.float32)
        h = tl.load(hidden + row * hidden_s + sample * hidden_b + column * hidden_m, mask=there, other=0.0)
        d *= slope(h.to(tl.float32) + offset)
        total += tl.sum(d, axis=0)
        place = (row * samples + sample) * WIDTH + column
        tl.store(d_hidden + place, d.to(d_hidden.dtype.element_ty), mask=there)
    tl.store(partials + (program * samples + sample) * WIDTH + columns, total, mask=columns < WIDTH)


FORWARD = Live(streamed=2, casts=1, work=1, once=2)
"""hidden and out; a step of the activation; the bias, as it comes and in fp32."""
BACKWARD = Live(streamed=3, casts=1, work=7, once=4)
"""d_out, hidden and d_hidden; the gradient and six steps of the slope; the bias, its sum and what is added to it."""
_MOST_ROWS = 64


def config(width: int, dtype: torch.dtype, live: Live) -> Tile:
    return tile("mlp_gelu by npu_triton", live, column_block(width), dtype, _MOST_ROWS)


def forward(hidden_SBM, bias_M, out_SBM, tiled: Tile | None = None) -> Iterator[Launch]:
    tokens, samples, width = hidden_SBM.shape
    tiled = tiled or config(width, hidden_SBM.dtype, FORWARD)
    blocks = triton.cdiv(width, tiled.columns)
    programs = shared_by(vector_cores(hidden_SBM), triton.cdiv(tokens, tiled.rows), blocks * samples)
    yield Launch(
        kernel=_forward,
        grid=(programs, blocks, samples),
        arguments={
            "hidden": hidden_SBM, "bias": bias_M, "out": out_SBM, "tokens": tokens, "samples": samples,
            "programs": programs, **strides(hidden_SBM=hidden_SBM, bias_M=bias_M), "ROWS": tiled.rows,
            "COLUMNS": tiled.columns, "WIDTH": width,
        },
        unified_buffer=tiled.bytes,
    )  # fmt: skip


def backward(d_out_SBM, hidden_SBM, bias_M, d_hidden_SBM, d_bias_M, tiled: Tile | None = None) -> Iterator[Launch]:
    tokens, samples, width = hidden_SBM.shape
    tiled = tiled or config(width, hidden_SBM.dtype, BACKWARD)
    blocks = triton.cdiv(width, tiled.columns)
    programs = shared_by(vector_cores(hidden_SBM), triton.cdiv(tokens, tiled.rows), blocks * samples)
    partials = hidden_SBM.new_empty(1, programs * samples, width, dtype=torch.float32)
    yield Launch(
        kernel=_backward,
        grid=(programs, blocks, samples),
        arguments={
            "d_out": d_out_SBM, "hidden": hidden_SBM, "bias": bias_M, "d_hidden": d_hidden_SBM, "partials": partials,
            "tokens": tokens, "samples": samples, "programs": programs,
            **strides(d_out_SBM=d_out_SBM, hidden_SBM=hidden_SBM, bias_M=bias_M), "ROWS": tiled.rows,
            "COLUMNS": tiled.columns, "WIDTH": width,
        },
        unified_buffer=tiled.bytes,
    )  # fmt: skip
    yield sum_partials(partials, d_bias_M)


mlp_gelu = operator("npu_triton", runs(forward), runs(backward))


def _compiled(kind: torch.dtype, rows: torch.dtype) -> Iterator[Compilation]:
    for tokens, samples, width in ((41472, 1, 9728), (13, 3, 280)):
        hidden_SBM, bias_M = on_meta(kind, tokens, samples, width), on_meta(rows, width)
        label = f"B {samples}, M {width}, {kind}, bias {rows}"
        yield from compilations(label, forward(hidden_SBM, bias_M, hidden_SBM))
        yield from compilations(label, backward(hidden_SBM, hidden_SBM, bias_M, hidden_SBM, bias_M))


COMPILED = tuple(each for kinds in KINDS for each in _compiled(*kinds))
