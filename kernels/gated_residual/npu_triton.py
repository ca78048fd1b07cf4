"""gated_residual in Triton for Ascend: as many programs as vector cores; each walks down a block of columns of one
sample. Backward keeps the sum for the gate as one row."""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ..ascend_memory import Live, Tile, column_block, shared_by, tile, vector_cores
from ..compilation import KINDS, Compilation, Launch, compilations, on_meta, runs
from ..triton_rows import strides, sum_partials
from .operator import operator


@triton.jit(do_not_specialize=["tokens", "samples", "programs"])
def _forward(
    x, gate, update, out, tokens, samples, programs, x_s, x_b, x_d, gate_b, gate_d, update_s, update_b, update_d,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    program, sample = tl.program_id(0), tl.program_id(2).to(tl.int64)
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)[None, :]
    inside = column < WIDTH
    factor = tl.load(gate + sample * gate_b + column * gate_d, mask=inside, other=0.0).to(tl.float32)
    for begin in range(program * ROWS, tokens, programs * ROWS):
        row = (begin + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        there = (row < tokens) & inside
        x_value = tl.load(x + row * x_s + sample * x_b + column * x_d, mask=there, other=0.0).to(tl.float32)
        added = tl.load(update + row * update_s + sample * update_b + column * update_d, mask=there, other=0.0)
        result = x_value + factor * added.to(tl.float32)
        tl.store(out + (row * samples + sample) * WIDTH + column, result.to(out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["tokens", "samples", "programs"])
def _backward(
    d_out, gate, update, d_update, partials, tokens, samples, programs, d_out_s, d_out_b, d_out_d, gate_b, gate_d,
    update_s, update_b, update_d, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    program, sample = tl.program_id(0), tl.program_id(2).to(tl.int64)
    columns = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
    column, inside = columns[None, :], columns[None, :] < WIDTH
    factor = tl.load(gate + sample * gate_b + column * gate_d, mask=inside, other=0.0).to(tl.float32)
    total = tl.full([COLUMNS], 0.0, tl.float32)
    for begin in range(program * ROWS, tokens, programs * ROWS):
        row = (begin + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        there = (row < tokens) & inside
        d = tl.load(d_out + row * d_out_s + sample * d_out_b + column * d_out_d, mask=there, other=0.0).to(tl.float32)
        added = tl.load(update + row * update_s + sample * update_b + column * update_d, mask=there, other=0.0)
        total += tl.sum(d * added.to(tl.float32), axis=0)
        place = (row * samples + sample) * WIDTH + column
        tl.store(d_update + place, (factor * d).to(d_update.dtype.element_ty), mask=there)
    tl.store(partials + (program * samples + sample) * WIDTH + columns, total, mask=columns < WIDTH)


FORWARD = Live(streamed=3, casts=2, once=2)
"""x, update and out; the gate, as it comes and in fp32."""
BACKWARD = Live(streamed=3, casts=2, work=1, once=4)
"""d_out, update and d_update; the product; the gate as it comes and in fp32, its sum and what is added to it."""
_MOST_ROWS = 64


def config(width: int, dtype: torch.dtype, live: Live) -> Tile:
    return tile("gated_residual by npu_triton", live, column_block(width), dtype, _MOST_ROWS)


def forward(x_SBD, gate_BD, update_SBD, out_SBD, tiled: Tile | None = None) -> Iterator[Launch]:
    tokens, samples, width = x_SBD.shape
    tiled = tiled or config(width, x_SBD.dtype, FORWARD)
    blocks = triton.cdiv(width, tiled.columns)
    programs = shared_by(vector_cores(x_SBD), triton.cdiv(tokens, tiled.rows), blocks * samples)
    yield Launch(
        kernel=_forward,
        grid=(programs, blocks, samples),
        arguments={
            "x": x_SBD, "gate": gate_BD, "update": update_SBD, "out": out_SBD, "tokens": tokens, "samples": samples,
            "programs": programs, **strides(x_SBD=x_SBD, gate_BD=gate_BD, update_SBD=update_SBD), "ROWS": tiled.rows,
            "COLUMNS": tiled.columns, "WIDTH": width,
        },
        unified_buffer=tiled.bytes,
    )  # fmt: skip


def backward(d_out_SBD, gate_BD, update_SBD, d_gate_BD, d_update_SBD, tiled: Tile | None = None) -> Iterator[Launch]:
    tokens, samples, width = update_SBD.shape
    tiled = tiled or config(width, update_SBD.dtype, BACKWARD)
    blocks = triton.cdiv(width, tiled.columns)
    programs = shared_by(vector_cores(update_SBD), triton.cdiv(tokens, tiled.rows), blocks * samples)
    partials = update_SBD.new_empty(1, programs, samples * width, dtype=torch.float32)
    yield Launch(
        kernel=_backward,
        grid=(programs, blocks, samples),
        arguments={
            "d_out": d_out_SBD, "gate": gate_BD, "update": update_SBD, "d_update": d_update_SBD, "partials": partials,
            "tokens": tokens, "samples": samples, "programs": programs,
            **strides(d_out_SBD=d_out_SBD, gate_BD=gate_BD, update_SBD=update_SBD), "ROWS": tiled.rows,
            "COLUMNS": tiled.columns, "WIDTH": width,
        },
        unified_buffer=tiled.bytes,
    )  # fmt: skip
    yield sum_partials(partials, d_gate_BD)


gated_residual = operator("npu_triton", runs(forward), runs(backward))


def _compiled(kind: torch.dtype, rows: torch.dtype) -> Iterator[Compilation]:
    for tokens, samples, width in ((41472, 1, 2432), (13, 3, 70)):
        x_SBD, row_BD = on_meta(kind, tokens, samples, width), on_meta(rows, samples, width)
        label = f"B {samples}, D {width}, {kind}, rows {rows}"
        yield from compilations(label, forward(x_SBD, row_BD, x_SBD, x_SBD))
        yield from compilations(label, backward(x_SBD, row_BD, x_SBD, row_BD, x_SBD))


COMPILED = tuple(each for kinds in KINDS for each in _compiled(*kinds))
