"""flow_loss in Triton: each value of a token finds its data and noise in the latents, so no target is ever written.

A program holds a block of one sample's tokens with all their values. In forward it visits every so-manieth block and
leaves one partial sum; a second kernel adds a sample's partial sums in a fixed order and weighs them.

Bytes: forward reads velocity and, of the latents, what its tokens speak of; backward reads the same and writes
d_velocity.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ..compilation import Compilation, Config, Launch, compilations, on_meta, runs
from ..triton_rows import programs_sharing, strides
from .operator import operator


@triton.jit
def _errors(
    velocity, x0, noise, token, value, there, first_token, rows, columns, velocity_s, velocity_p, x0_c, x0_f,
    x0_y, x0_x, noise_c, noise_f, noise_y, noise_x, CHANNELS: tl.constexpr,
):  # fmt: skip
    """velocity - (noise - x0) of a block of tokens [ROWS, 1] and values [1, COLUMNS]; 0 where nothing is. The pointers
    are the sample's."""
    patch, channel = value // CHANNELS, (value % CHANNELS).to(tl.int64)
    place = token + first_token
    patches = columns // 2
    x = (place % patches * 2 + patch % 2).to(tl.int64)
    place = place // patches
    y = (place % (rows // 2) * 2 + patch // 2).to(tl.int64)
    f = (place // (rows // 2)).to(tl.int64)
    data = tl.load(x0 + (channel * x0_c + f * x0_f + y * x0_y + x * x0_x), mask=there, other=0.0).to(tl.float32)
    made = tl.load(noise + (channel * noise_c + f * noise_f + y * noise_y + x * noise_x), mask=there, other=0.0)
    where = token.to(tl.int64) * velocity_s + value.to(tl.int64) * velocity_p
    predicted = tl.load(velocity + where, mask=there, other=0.0).to(tl.float32)
    return predicted - (made.to(tl.float32) - data)


@triton.jit(do_not_specialize=["tokens", "samples", "programs", "first_token", "rows", "columns"])
def _forward(
    velocity, x0, noise, partials, tokens, samples, programs, first_token, rows, columns, velocity_s, velocity_b,
    velocity_p, x0_b, x0_c, x0_f, x0_y, x0_x, noise_b, noise_c, noise_f, noise_y, noise_x, CHANNELS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    program, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    value = tl.arange(0, COLUMNS)[None, :]
    total = tl.full([ROWS, COLUMNS], 0.0, tl.float32)
    for begin in range(program * ROWS, tokens, programs * ROWS):
        token = begin + tl.arange(0, ROWS)[:, None]
        error = _errors(
            velocity + batch * velocity_b, x0 + batch * x0_b, noise + batch * noise_b, token, value,
            (token < tokens) & (value < 4 * CHANNELS), first_token, rows, columns, velocity_s, velocity_p, x0_c, x0_f,
            x0_y, x0_x, noise_c, noise_f, noise_y, noise_x, CHANNELS,
        )  # fmt: skip
        total += error * error
    tl.store(partials + batch * programs + program, tl.sum(tl.sum(total, axis=1), axis=0))


@triton.jit(do_not_specialize=["programs", "divisor"])
def weigh(partials, weight, loss, programs, divisor, weight_b, BLOCK: tl.constexpr):
    batch = tl.program_id(0).to(tl.int64)
    total = tl.full([BLOCK], 0.0, tl.float32)
    for begin in range(0, programs, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        total += tl.load(partials + batch * programs + place, mask=place < programs, other=0.0)
    factor = tl.load(weight + batch * weight_b).to(tl.float32) / divisor
    tl.store(loss + batch, tl.sum(total, axis=0) * factor)


@triton.jit(do_not_specialize=["tokens", "samples", "first_token", "rows", "columns", "divisor"])
def _backward(
    d_loss, velocity, x0, noise, weight, d_velocity, tokens, samples, first_token, rows, columns, divisor, d_loss_b,
    velocity_s, velocity_b, velocity_p, x0_b, x0_c, x0_f, x0_y, x0_x, noise_b, noise_c, noise_f, noise_y, noise_x,
    weight_b, CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1).to(tl.int64)
    value = tl.arange(0, COLUMNS)[None, :]
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    there = (token < tokens) & (value < 4 * CHANNELS)
    error = _errors(
        velocity + batch * velocity_b, x0 + batch * x0_b, noise + batch * noise_b, token, value, there,
        first_token, rows, columns, velocity_s, velocity_p, x0_c, x0_f, x0_y, x0_x, noise_c, noise_f, noise_y, noise_x,
        CHANNELS,
    )  # fmt: skip
    factor = tl.load(weight + batch * weight_b).to(tl.float32) * tl.load(d_loss + batch * d_loss_b).to(tl.float32)
    place = (token.to(tl.int64) * samples + batch) * (4 * CHANNELS) + value
    result = error * (2.0 * factor / divisor)
    tl.store(d_velocity + place, result.to(d_velocity.dtype.element_ty), mask=there)


def forward_config(values: int) -> Config:
    return Config(rows=max(1, 2048 // triton.next_power_of_2(values)), warps=4, programs=4)


def backward_config(values: int) -> Config:
    return Config(rows=max(1, 2048 // triton.next_power_of_2(values)), warps=4)


def forward(
    velocity_SBP, x0_BCFYX, noise_BCFYX, weight_B, first_token, loss_B, config: Config | None = None
) -> Iterator[Launch]:
    tokens, samples, values = velocity_SBP.shape
    config = config or forward_config(values)
    programs = programs_sharing(tokens, config, velocity_SBP, samples)
    partials = velocity_SBP.new_empty(samples, programs, dtype=torch.float32)
    yield Launch(
        kernel=_forward,
        grid=(programs, samples),
        arguments=_shared_arguments(velocity_SBP, x0_BCFYX, noise_BCFYX, first_token, config.rows)
        | {"partials": partials, "programs": programs},
        num_warps=config.warps,
    )
    yield Launch(
        kernel=weigh,
        grid=(samples,),
        arguments={
            "partials": partials, "weight": weight_B, "loss": loss_B, "programs": programs,
            "divisor": float(x0_BCFYX[0].numel()), **strides(weight_B=weight_B), "BLOCK": 1024,
        },
    )  # fmt: skip


def backward(
    d_loss_B, velocity_SBP, x0_BCFYX, noise_BCFYX, weight_B, first_token, d_velocity_SBP, config: Config | None = None
) -> Iterator[Launch]:
    tokens, samples, values = velocity_SBP.shape
    config = config or backward_config(values)
    yield Launch(
        kernel=_backward,
        grid=(triton.cdiv(tokens, config.rows), samples),
        arguments=_shared_arguments(velocity_SBP, x0_BCFYX, noise_BCFYX, first_token, config.rows)
        | strides(d_loss_B=d_loss_B, weight_B=weight_B)
        | {
            "d_loss": d_loss_B, "weight": weight_B, "d_velocity": d_velocity_SBP,
            "divisor": float(x0_BCFYX[0].numel()),
        },
        num_warps=config.warps,
    )  # fmt: skip


def _shared_arguments(velocity_SBP, x0_BCFYX, noise_BCFYX, first_token: int, block: int) -> dict:
    tokens, samples, values = velocity_SBP.shape
    _, channels, _frames, rows, columns = x0_BCFYX.shape
    assert values == 4 * channels, (
        f"tokens have {values} values; patches of 2 x 2 with {channels} channels have four each"
    )
    return {
        "velocity": velocity_SBP, "x0": x0_BCFYX, "noise": noise_BCFYX, "tokens": tokens, "samples": samples,
        "first_token": first_token, "rows": rows, "columns": columns,
        **strides(velocity_SBP=velocity_SBP, x0_BCFYX=x0_BCFYX, noise_BCFYX=noise_BCFYX), "CHANNELS": channels,
        "ROWS": block, "COLUMNS": triton.next_power_of_2(values),
    }  # fmt: skip


flow_loss = operator("gpu_triton", runs(forward), runs(backward))


def _compiled(kind: torch.dtype) -> Iterator[Compilation]:
    velocity_SBP, x0_BCFYX = on_meta(kind, 41472, 1, 64), on_meta(kind, 1, 16, 32, 54, 96)
    value_B, given = on_meta(torch.float32, 1), (velocity_SBP, x0_BCFYX, x0_BCFYX)
    yield from compilations(f"C 16, {kind}", forward(*given, value_B, 0, value_B))
    yield from compilations(f"C 16, {kind}", backward(value_B, *given, value_B, 0, velocity_SBP))


COMPILED = tuple(each for kind in (torch.bfloat16, torch.float32) for each in _compiled(kind))
