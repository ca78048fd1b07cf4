"""mlp_gelu in Triton, with the activation as h sigmoid(2 z): 1 + tanh(z) loses digits where tanh is near -1.

    z = sqrt(2 / pi) (h + 0.044715 h^3)      s = sigmoid(2 z)      out = h s
    d out / d h = s + h s (1 - s) 2 sqrt(2 / pi) (1 + 3 * 0.044715 h^2)

A program holds a block of rows and columns of one sample. In backward it walks down every so-manieth block of rows and
keeps the sums for the bias on the way; 1 - s is made as sigmoid(-2 z), for the same reason as above.

Bytes: forward reads hidden and writes out, backward reads d_out and hidden and writes d_hidden.
"""

import math
from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ..compilation import KINDS, Compilation, Config, Launch, compilations, on_meta, runs
from ..triton_rows import programs_sharing, strides, sum_partials
from .operator import operator

_CUBIC = tl.constexpr(0.044715)
_TWICE_ROOT = tl.constexpr(2 * math.sqrt(2 / math.pi))


@triton.jit
def activated(h):
    return h / (1.0 + tl.exp(h * (1.0 + h * h * _CUBIC) * -_TWICE_ROOT))


@triton.jit
def slope(h):
    """d out / d h."""
    squared = h * h * _CUBIC
    shrunk = tl.exp(h * (1.0 + squared) * -_TWICE_ROOT)
    sigmoid = 1.0 / (1.0 + shrunk)
    rest = tl.where(shrunk < float("inf"), shrunk * sigmoid, 1.0)
    return sigmoid * (1.0 + h * rest * ((1.0 + 3.0 * squared) * _TWICE_ROOT))


@triton.jit(do_not_specialize=["tokens", "samples"])
def _forward(
    hidden, bias, out, tokens, samples, hidden_s, hidden_b, hidden_m, bias_m,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(2).to(tl.int64)
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)[None, :]
    there = (row < tokens) & (column < WIDTH)
    h = tl.load(hidden + row * hidden_s + sample * hidden_b + column * hidden_m, mask=there).to(tl.float32)
    h += tl.load(bias + column * bias_m, mask=column < WIDTH).to(tl.float32)
    result = activated(h)
    tl.store(out + (row * samples + sample) * WIDTH + column, result.to(out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["tokens", "samples", "programs"])
def _backward(
    d_out, hidden, bias, d_hidden, partials, tokens, samples, programs, d_out_s, d_out_b, d_out_m, hidden_s, hidden_b,
    hidden_m, bias_m, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    program, sample = tl.program_id(0), tl.program_id(2).to(tl.int64)
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)[None, :]
    inside = column < WIDTH
    offset = tl.load(bias + column * bias_m, mask=inside, other=0.0).to(tl.float32)
    d_out_start = d_out + sample * d_out_b + column * d_out_m
    hidden_start = hidden + sample * hidden_b + column * hidden_m
    total = tl.full([ROWS, COLUMNS], 0.0, tl.float32)
    for begin in tl.range(program * ROWS, tokens, programs * ROWS, num_stages=STAGES):
        row = (begin + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        there = (row < tokens) & inside
        d = tl.load(d_out_start + row * d_out_s, mask=there, other=0.0).to(tl.float32)
        h = tl.load(hidden_start + row * hidden_s, mask=there, other=0.0).to(tl.float32) + offset
        d *= slope(h)
        total += d
        place = (row * samples + sample) * WIDTH + column
        tl.store(d_hidden + place, d.to(d_hidden.dtype.element_ty), mask=there)
    place = (program * samples + sample) * WIDTH + column
    tl.store(partials + place, tl.sum(total, axis=0)[None, :], mask=inside)


def forward_config(width: int) -> Config:
    """512 columns: the 8B model's 9728 are 19 times as many."""
    return Config(rows=8, columns=min(512, triton.next_power_of_2(width)), warps=4)


def backward_config(width: int) -> Config:
    """Fewer rows than forward: the sums take registers, and all programs should be on the device at once."""
    return Config(rows=4, columns=min(512, triton.next_power_of_2(width)), warps=4, stages=3, programs=16)


def forward(hidden_SBM, bias_M, out_SBM, config: Config | None = None) -> Iterator[Launch]:
    tokens, samples, width = hidden_SBM.shape
    config = config or forward_config(width)
    yield Launch(
        kernel=_forward,
        grid=(triton.cdiv(tokens, config.rows), triton.cdiv(width, config.columns), samples),
        arguments={
            "hidden": hidden_SBM, "bias": bias_M, "out": out_SBM, "tokens": tokens, "samples": samples,
            **strides(hidden_SBM=hidden_SBM, bias_M=bias_M), "ROWS": config.rows, "COLUMNS": config.columns,
            "WIDTH": width,
        },
        num_warps=config.warps,
    )  # fmt: skip


def backward(d_out_SBM, hidden_SBM, bias_M, d_hidden_SBM, d_bias_M, config: Config | None = None) -> Iterator[Launch]:
    tokens, samples, width = hidden_SBM.shape
    config = config or backward_config(width)
    blocks = triton.cdiv(width, config.columns)
    programs = programs_sharing(tokens, config, hidden_SBM, blocks * samples)
    partials = hidden_SBM.new_empty(1, programs * samples, width, dtype=torch.float32)
    yield Launch(
        kernel=_backward,
        grid=(programs, blocks, samples),
        arguments={
            "d_out": d_out_SBM, "hidden": hidden_SBM, "bias": bias_M, "d_hidden": d_hidden_SBM, "partials": partials,
            "tokens": tokens, "samples": samples, "programs": programs,
            **strides(d_out_SBM=d_out_SBM, hidden_SBM=hidden_SBM, bias_M=bias_M), "ROWS": config.rows,
            "COLUMNS": config.columns, "STAGES": config.stages, "WIDTH": width,
        },
        num_warps=config.warps,
    )  # fmt: skip
    yield sum_partials(partials, d_bias_M)


mlp_gelu = operator("gpu_triton", runs(forward), runs(backward))


def _compiled(kind: torch.dtype, rows: torch.dtype) -> Iterator[Compilation]:
    hidden_SBM, bias_M, label = on_meta(kind, 41472, 1, 9728), on_meta(rows, 9728), f"M 9728, {kind}, bias {rows}"
    yield from compilations(label, forward(hidden_SBM, bias_M, hidden_SBM))
    yield from compilations(label, backward(hidden_SBM, hidden_SBM, bias_M, hidden_SBM, bias_M))


COMPILED = tuple(each for kinds in KINDS for each in _compiled(*kinds))
