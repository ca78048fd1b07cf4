"""gated_residual_norm in Triton: the two operations of its contract in one pass.

Forward: a program makes whole rows of out, rounds them as they are returned, and norms what it rounded from registers.
Backward: a program visits every so-manieth row of one sample and keeps the sums for gate, shift and scale on the way;
with n = (out - mean) / deviation and g = d_normed (1 + scale),

    d_x = d_out + (g - mean_D(g) - n mean_D(g n)) / deviation      d_update = gate d_x
    d_gate = sum_S(update d_x)      d_shift = sum_S(d_normed)      d_scale = sum_S(d_normed n)

Bytes: forward reads x and update and writes out and normed; backward reads d_out, d_normed, out and update and writes
d_x and d_update.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ..compilation import KINDS, Compilation, Config, Launch, compilations, on_meta, runs
from ..triton_rows import (
    load_row,
    load_rows,
    modulated,
    programs_sharing,
    row_moments,
    store_row_sums,
    store_rows,
    strides,
    sum_partials,
    through_norm,
    two_parts,
)
from .operator import operator


@triton.jit(do_not_specialize=["tokens", "samples"])
def _forward(
    x, gate, update, shift, scale, out, normed, mean, reciprocal, tokens, samples, x_s, x_b, x_d, gate_b, gate_d,
    update_s, update_b, update_d, shift_b, shift_d, scale_b, scale_d, epsilon,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    there = row < tokens
    first, second = load_rows(x + row * x_s + sample * x_b, x_d, there, WIDTH, HEAD, TAIL)
    added, added_tail = load_rows(update + row * update_s + sample * update_b, update_d, there, WIDTH, HEAD, TAIL)
    factor, factor_tail = load_row(gate + sample * gate_b, gate_d, WIDTH, HEAD, TAIL)
    kind = out.dtype.element_ty
    first = (first + factor * added).to(kind).to(tl.float32)
    second = (second + factor_tail * added_tail).to(kind).to(tl.float32)
    place = row * samples + sample
    store_rows(out + place * WIDTH, first, second, there, WIDTH, HEAD, TAIL)
    row_mean, row_reciprocal = row_moments(first, second, epsilon, WIDTH, HEAD, TAIL)
    tl.store(mean + place, row_mean, mask=there)
    tl.store(reciprocal + place, row_reciprocal, mask=there)
    first, second = modulated(
        first, second, row_mean, row_reciprocal, shift, scale, sample, shift_b, shift_d, scale_b, scale_d,
        WIDTH, HEAD, TAIL,
    )  # fmt: skip
    store_rows(normed + place * WIDTH, first, second, there, WIDTH, HEAD, TAIL)


@triton.jit(do_not_specialize=["tokens", "samples", "programs"])
def _backward(
    d_out, d_normed, out, gate, update, scale, mean, reciprocal, d_x, d_update, partials, tokens, samples, programs,
    d_out_s, d_out_b, d_out_d, d_normed_s, d_normed_b, d_normed_d, out_s, out_b, out_d, gate_b, gate_d, update_s,
    update_b, update_d, scale_b, scale_d, ROWS: tl.constexpr, STAGES: tl.constexpr, WIDTH: tl.constexpr,
    HEAD: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    program, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    scale_first, scale_second = load_row(scale + sample * scale_b, scale_d, WIDTH, HEAD, TAIL)
    factor, factor_tail = load_row(gate + sample * gate_b, gate_d, WIDTH, HEAD, TAIL)
    gate_first, gate_second = tl.full([ROWS, HEAD], 0.0, tl.float32), tl.full([ROWS, TAIL], 0.0, tl.float32)
    shift_first, shift_second = tl.full([ROWS, HEAD], 0.0, tl.float32), tl.full([ROWS, TAIL], 0.0, tl.float32)
    scale_sum_first, scale_sum_second = tl.full([ROWS, HEAD], 0.0, tl.float32), tl.full([ROWS, TAIL], 0.0, tl.float32)
    for begin in tl.range(program * ROWS, tokens, programs * ROWS, num_stages=STAGES):
        row = begin + tl.arange(0, ROWS)[:, None].to(tl.int64)
        there = row < tokens
        place = row * samples + sample
        start = d_normed + row * d_normed_s + sample * d_normed_b
        d_first, d_second = load_rows(start, d_normed_d, there, WIDTH, HEAD, TAIL)
        n_first, n_second = load_rows(out + row * out_s + sample * out_b, out_d, there, WIDTH, HEAD, TAIL)
        added, added_tail = load_rows(update + row * update_s + sample * update_b, update_d, there, WIDTH, HEAD, TAIL)
        row_mean = tl.load(mean + place, mask=there, other=0.0)
        row_reciprocal = tl.load(reciprocal + place, mask=there, other=0.0)
        n_first, n_second = (n_first - row_mean) * row_reciprocal, (n_second - row_mean) * row_reciprocal
        shift_first, shift_second = shift_first + d_first, shift_second + d_second
        scale_sum_first, scale_sum_second = scale_sum_first + d_first * n_first, scale_sum_second + d_second * n_second
        d_first, d_second = d_first * (1.0 + scale_first), d_second * (1.0 + scale_second)
        d_first, d_second = through_norm(d_first, d_second, n_first, n_second, row_reciprocal, WIDTH)
        if d_out is not None:
            passed, passed_tail = load_rows(d_out + row * d_out_s + sample * d_out_b, d_out_d, there, WIDTH, HEAD, TAIL)
            d_first, d_second = d_first + passed, d_second + passed_tail
        store_rows(d_x + place * WIDTH, d_first, d_second, there, WIDTH, HEAD, TAIL)
        gate_first, gate_second = gate_first + d_first * added, gate_second + d_second * added_tail
        store_rows(d_update + place * WIDTH, factor * d_first, factor_tail * d_second, there, WIDTH, HEAD, TAIL)
    place = (program * samples + sample) * WIDTH
    apart = programs.to(tl.int64) * samples * WIDTH
    store_row_sums(partials + place, gate_first, gate_second, WIDTH, HEAD, TAIL)
    store_row_sums(partials + apart + place, shift_first, shift_second, WIDTH, HEAD, TAIL)
    store_row_sums(partials + 2 * apart + place, scale_sum_first, scale_sum_second, WIDTH, HEAD, TAIL)


def forward_config(width: int) -> Config:
    """Few warps a row: they wait for each other twice."""
    return Config(rows=max(1, 1024 // triton.next_power_of_2(width)), warps=2 if width <= 4096 else 8)


def backward_config(width: int, bytes_each: int) -> Config:
    """As many warps as take the first part with 32 bytes a thread; measured on an H100 (docs/measured.md)."""
    rows = max(1, 1024 // triton.next_power_of_2(width))
    warps = min(max(rows * two_parts(width)[0] * bytes_each // 1024, 4), 16)
    return Config(rows=rows, warps=warps, stages=3, programs=16 // warps)


def forward(
    x_SBD, gate_BD, update_SBD, shift_BD, scale_BD, epsilon, out_SBD, normed_SBD, mean_SB, reciprocal_SB,
    config: Config | None = None,
) -> Iterator[Launch]:  # fmt: skip
    tokens, samples, width = x_SBD.shape
    config = config or forward_config(width)
    head, tail = two_parts(width)
    yield Launch(
        kernel=_forward,
        grid=(triton.cdiv(tokens, config.rows), samples),
        arguments={
            "x": x_SBD, "gate": gate_BD, "update": update_SBD, "shift": shift_BD, "scale": scale_BD, "out": out_SBD,
            "normed": normed_SBD, "mean": mean_SB, "reciprocal": reciprocal_SB, "tokens": tokens, "samples": samples,
            **strides(x_SBD=x_SBD, gate_BD=gate_BD, update_SBD=update_SBD, shift_BD=shift_BD, scale_BD=scale_BD),
            "epsilon": epsilon, "ROWS": config.rows, "WIDTH": width, "HEAD": head, "TAIL": tail,
        },
        num_warps=config.warps,
    )  # fmt: skip


def backward(
    d_out_SBD, d_normed_SBD, out_SBD, gate_BD, update_SBD, scale_BD, mean_SB, reciprocal_SB, d_x_SBD, d_gate_BD,
    d_update_SBD, d_shift_BD, d_scale_BD, config: Config | None = None,
) -> Iterator[Launch]:  # fmt: skip
    tokens, samples, width = out_SBD.shape
    config = config or backward_config(width, out_SBD.element_size())
    head, tail = two_parts(width)
    programs = programs_sharing(tokens, config, out_SBD, samples)
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
            **strides(update_SBD=update_SBD, scale_BD=scale_BD), "ROWS": config.rows, "STAGES": config.stages,
            "WIDTH": width, "HEAD": head, "TAIL": tail,
        },
        num_warps=config.warps,
    )  # fmt: skip
    yield sum_partials(partials, d_gate_BD, d_shift_BD, d_scale_BD)


gated_residual_norm = operator("gpu_triton", runs(forward), runs(backward))


def _compiled(kind: torch.dtype, rows: torch.dtype) -> Iterator[Compilation]:
    x_SBD, row_BD = on_meta(kind, 41472, 1, 2432), on_meta(rows, 1, 2432)
    value_SB, label = on_meta(torch.float32, 41472, 1), f"D 2432, {kind}, rows {rows}"
    rows_BD, moments = (row_BD,) * 2, (value_SB,) * 2
    yield from compilations(label, forward(x_SBD, row_BD, x_SBD, *rows_BD, 1e-6, x_SBD, x_SBD, *moments))
    given = (x_SBD, row_BD, x_SBD, row_BD, *moments, x_SBD, row_BD, x_SBD, *rows_BD)
    yield from compilations(label, backward(x_SBD, x_SBD, *given))
    yield from compilations(f"{label}, out unused", backward(None, x_SBD, *given))


COMPILED = tuple(each for kinds in KINDS for each in _compiled(*kinds))
