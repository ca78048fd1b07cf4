"""gated_residual in Triton.

A program holds a block of rows and columns of one sample. In backward it walks down every so-manieth block of rows and
keeps the sums for the gate on the way.

Bytes: forward reads x and update and writes out, backward reads d_out and update and writes d_update.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ..compilation import KINDS, Compilation, Config, Launch, compilations, on_meta, runs
from ..triton_rows import programs_sharing, strides, sum_partials
from .operator import operator


@triton.jit(do_not_specialize=["tokens", "samples"])
def _forward(
    x, gate, update, out, tokens, samples, x_s, x_b, x_d, gate_b, gate_d, update_s, update_b, update_d,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(2).to(tl.int64)
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)[None, :]
    there = (row < tokens) & (column < WIDTH)
    x_value = tl.load(x + row * x_s + sample * x_b + column * x_d, mask=there).to(tl.float32)
    added = tl.load(update + row * update_s + sample * update_b + column * update_d, mask=there).to(tl.float32)
    factor = tl.load(gate + sample * gate_b + column * gate_d, mask=column < WIDTH).to(tl.float32)
    result = x_value + factor * added
    tl.store(out + (row * samples + sample) * WIDTH + column, result.to(out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["tokens", "samples", "programs"])
def _backward(
    d_out, gate, update, d_update, partials, tokens, samples, programs, d_out_s, d_out_b, d_out_d, gate_b, gate_d,
    update_s, update_b, update_d, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    program, sample = tl.program_id(0), tl.program_id(2).to(tl.int64)
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)[None, :]
    inside = column < WIDTH
    factor = tl.load(gate + sample * gate_b + column * gate_d, mask=inside, other=0.0).to(tl.float32)
    d_out_start = d_out + sample * d_out_b + column * d_out_d
    update_start = update + sample * update_b + column * update_d
    total = tl.full([ROWS, COLUMNS], 0.0, tl.float32)
    for begin in tl.range(program * ROWS, tokens, programs * ROWS, num_stages=STAGES):
        row = (begin + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        there = (row < tokens) & inside
        d = tl.load(d_out_start + row * d_out_s, mask=there, other=0.0).to(tl.float32)
        added = tl.load(update_start + row * update_s, mask=there, other=0.0).to(tl.float32)
        total += d * added
        place = (row * samples + sample) * WIDTH + column
        tl.store(d_update + place, (factor * d).to(d_update.dtype.element_ty), mask=there)
    place = (program * samples + sample) * WIDTH + column
    tl.store(partials + place, tl.sum(total, axis=0)[None, :], mask=inside)


def forward_config(width: int) -> Config:
    """512 columns: five blocks of the 8B model's 2432, and a twentieth of the threads idle."""
    return Config(rows=8, columns=min(512, triton.next_power_of_2(width)), warps=4)


def backward_config(width: int) -> Config:
    """Fewer rows than forward: the sums take registers, and all programs should be on the device at once."""
    return Config(rows=4, columns=min(512, triton.next_power_of_2(width)), warps=4, programs=8)


def forward(x_SBD, gate_BD, update_SBD, out_SBD, config: Config | None = None) -> Iterator[Launch]:
    tokens, samples, width = x_SBD.shape
    config = config or forward_config(width)
    yield Launch(
        kernel=_forward,
        grid=(triton.cdiv(tokens, config.rows), triton.cdiv(width, config.columns), samples),
        arguments={
            "x": x_SBD, "gate": gate_BD, "update": update_SBD, "out": out_SBD, "tokens": tokens, "samples": samples,
            **strides(x_SBD=x_SBD, gate_BD=gate_BD, update_SBD=update_SBD), "ROWS": config.rows,
            "COLUMNS": config.columns, "WIDTH": width,
        },
        num_warps=config.warps,
    )  # fmt: skip


def backward(d_out_SBD, gate_BD, update_SBD, d_gate_BD, d_update_SBD, config: Config | None = None) -> Iterator[Launch]:
    tokens, samples, width = update_SBD.shape
    config = config or backward_config(width)
    blocks = triton.cdiv(width, config.columns)
    programs = programs_sharing(tokens, config, update_SBD, blocks * samples)
    partials = update_SBD.new_empty(1, programs, samples * width, dtype=torch.float32)
    yield Launch(
        kernel=_backward,
        grid=(programs, blocks, samples),
        arguments={
            "d_out": d_out_SBD, "gate": gate_BD, "update": update_SBD, "d_update": d_update_SBD, "partials": partials,
            "tokens": tokens, "samples": samples, "programs": programs,
            **strides(d_out_SBD=d_out_SBD, gate_BD=gate_BD, update_SBD=update_SBD), "ROWS": config.rows,
            "COLUMNS": config.columns, "STAGES": config.stages, "WIDTH": width,
        },
        num_warps=config.warps,
    )  # fmt: skip
    yield sum_partials(partials, d_gate_BD)


gated_residual = operator("gpu_triton", runs(forward), runs(backward))


def _compiled(kind: torch.dtype, rows: torch.dtype) -> Iterator[Compilation]:
    x_SBD, row_BD = on_meta(kind, 41472, 1, 2432), on_meta(rows, 1, 2432)
    label = f"D 2432, {kind}, rows {rows}"
    yield from compilations(label, forward(x_SBD, row_BD, x_SBD, x_SBD))
    yield from compilations(label, backward(x_SBD, row_BD, x_SBD, row_BD, x_SBD))


COMPILED = tuple(each for kinds in KINDS for each in _compiled(*kinds))
