"""flow_loss in Triton for Ascend: a program takes rows of patches, whose data lies in rows of the latents, channel by
channel; turned in the unified buffer they are a token's values, channel last. No target is ever written.

A unit of work is one line of pixels (f, y, p) over a run of patches. Forward keeps a tile of squares and leaves one
partial sum a program; gpu_triton.py's second kernel adds them in a fixed order and weighs them.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ..ascend_memory import Live, Tile, shared_by, tile, vector_cores
from ..compilation import Compilation, Launch, compilations, on_meta, runs
from ..triton_rows import strides
from .gpu_triton import weigh
from .operator import operator


@triton.jit
def _lines(pointer, stride_c, stride_x, start, end, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, PATCHES: tl.constexpr):
    """[PATCHES, 2, BLOCK] of the pixels of patches from start to end, fp32, from the line of latents at pointer."""
    channel = tl.arange(0, BLOCK)[:, None].to(tl.int64)
    pixel = tl.arange(0, 2 * PATCHES)[None, :].to(tl.int64)
    there = (pixel < 2 * (end - start)) & (channel < CHANNELS)
    values = tl.load(pointer + 2 * start * stride_x + channel * stride_c + pixel * stride_x, mask=there, other=0.0)
    return tl.reshape(tl.trans(values.to(tl.float32)), (PATCHES, 2, BLOCK))


@triton.jit
def _places(token, start, stride_s, stride_p, half, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, PATCHES: tl.constexpr):
    """Where these values of the tokens from `token` on are, in line `half` of their patches: [PATCHES, 2, BLOCK]."""
    patch = tl.arange(0, PATCHES)[:, None, None].to(tl.int64)
    column, channel = tl.arange(0, 2)[None, :, None].to(tl.int64), tl.arange(0, BLOCK)[None, None, :].to(tl.int64)
    return (token + patch) * stride_s + (half * 2 * CHANNELS + column * CHANNELS + channel) * stride_p


@triton.jit
def _inside(start, end, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, PATCHES: tl.constexpr):
    return (tl.arange(0, PATCHES)[:, None, None] < end - start) & (tl.arange(0, BLOCK)[None, None, :] < CHANNELS)


@triton.jit
def _run_of(unit, runs, first_token, tokens, rows, columns, PATCHES: tl.constexpr):
    """Line, frame, token and patches of a unit of work, counted from the row of patches where the first token is."""
    patches = columns // 2
    half, rest = unit % 2, unit // 2
    row = rest // runs + first_token // patches
    begin = (row * patches).to(tl.int64)
    start = tl.maximum(first_token - begin, 0) + rest % runs * PATCHES
    end = tl.minimum(first_token + tokens - begin, patches)
    end = tl.maximum(tl.minimum(end, start + PATCHES), start)
    frame, line = row // (rows // 2), row % (rows // 2) * 2 + half
    return half, frame.to(tl.int64), line.to(tl.int64), begin + start - first_token, start, end


@triton.jit(do_not_specialize=["tokens", "samples", "programs", "units", "runs", "first_token", "rows", "columns"])
def _forward(
    velocity, x0, noise, partials, tokens, samples, programs, units, runs, first_token, rows, columns, velocity_s,
    velocity_b, velocity_p, x0_b, x0_c, x0_f, x0_y, x0_x, noise_b, noise_c, noise_f, noise_y, noise_x,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, PATCHES: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1).to(tl.int64)
    total = tl.full([PATCHES, 2, BLOCK], 0.0, tl.float32)
    for unit in range(tl.program_id(0), units, programs):
        half, frame, line, token, start, end = _run_of(unit, runs, first_token, tokens, rows, columns, PATCHES)
        data = _lines(x0 + batch * x0_b + frame * x0_f + line * x0_y, x0_c, x0_x, start, end, CHANNELS, BLOCK, PATCHES)
        made = _lines(
            noise + batch * noise_b + frame * noise_f + line * noise_y, noise_c, noise_x, start, end, CHANNELS, BLOCK,
            PATCHES,
        )  # fmt: skip
        place = _places(token, start, velocity_s, velocity_p, half, CHANNELS, BLOCK, PATCHES)
        there = _inside(start, end, CHANNELS, BLOCK, PATCHES)
        predicted = tl.load(velocity + batch * velocity_b + place, mask=there, other=0.0).to(tl.float32)
        error = predicted - (made - data)
        total += error * error
    total = tl.sum(tl.sum(tl.sum(total, axis=2), axis=1), axis=0)
    tl.store(partials + batch * programs + tl.program_id(0), total)


@triton.jit(do_not_specialize=["tokens", "samples", "programs", "units", "runs", "first_token", "rows", "columns",
                               "divisor"])  # fmt: skip
def _backward(
    d_loss, velocity, x0, noise, weight, d_velocity, tokens, samples, programs, units, runs, first_token, rows, columns,
    divisor, d_loss_b, velocity_s, velocity_b, velocity_p, x0_b, x0_c, x0_f, x0_y, x0_x, noise_b, noise_c, noise_f,
    noise_y, noise_x, weight_b, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, PATCHES: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1).to(tl.int64)
    factor = tl.load(weight + batch * weight_b).to(tl.float32) * tl.load(d_loss + batch * d_loss_b).to(tl.float32)
    factor = 2.0 * factor / divisor
    for unit in range(tl.program_id(0), units, programs):
        half, frame, line, token, start, end = _run_of(unit, runs, first_token, tokens, rows, columns, PATCHES)
        data = _lines(x0 + batch * x0_b + frame * x0_f + line * x0_y, x0_c, x0_x, start, end, CHANNELS, BLOCK, PATCHES)
        made = _lines(
            noise + batch * noise_b + frame * noise_f + line * noise_y, noise_c, noise_x, start, end, CHANNELS, BLOCK,
            PATCHES,
        )  # fmt: skip
        place = _places(token, start, velocity_s, velocity_p, half, CHANNELS, BLOCK, PATCHES)
        there = _inside(start, end, CHANNELS, BLOCK, PATCHES)
        predicted = tl.load(velocity + batch * velocity_b + place, mask=there, other=0.0).to(tl.float32)
        result = (predicted - (made - data)) * factor
        place = _places(token, start, samples * 4 * CHANNELS, 1, half, CHANNELS, BLOCK, PATCHES)
        place += batch * 4 * CHANNELS
        tl.store(d_velocity + place, result.to(d_velocity.dtype.element_ty), mask=there)


FORWARD = Live(streamed=3, work=10)
"""velocity, x0 and noise; both latents as they lie and turned, velocity, the error, its square and their sum."""
BACKWARD = Live(streamed=4, work=10)
"""velocity, x0, noise and d_velocity; both latents as they lie and turned, velocity and the error."""
_MOST_PATCHES = 64


def config(channels: int, dtype: torch.dtype, live: Live) -> Tile:
    """Rows are patches of a line of pixels, columns their two pixels' channels, at least what a turn takes at once."""
    columns = 2 * max(16, triton.next_power_of_2(channels))
    return tile("flow_loss by npu_triton", live, columns, dtype, _MOST_PATCHES)


def forward(
    velocity_SBP, x0_BCFYX, noise_BCFYX, weight_B, first_token, loss_B, tiled: Tile | None = None
) -> Iterator[Launch]:
    tiled = tiled or config(x0_BCFYX.shape[1], x0_BCFYX.dtype, FORWARD)
    shared = _shared_arguments(velocity_SBP, x0_BCFYX, noise_BCFYX, first_token, tiled)
    programs, samples = shared["programs"], shared["samples"]
    partials = velocity_SBP.new_empty(samples, programs, dtype=torch.float32)
    yield Launch(
        kernel=_forward, grid=(programs, samples), arguments=shared | {"partials": partials},
        unified_buffer=tiled.bytes,
    )  # fmt: skip
    yield Launch(
        kernel=weigh,
        grid=(samples,),
        arguments={
            "partials": partials, "weight": weight_B, "loss": loss_B, "programs": programs,
            "divisor": float(x0_BCFYX[0].numel()), **strides(weight_B=weight_B), "BLOCK": 1024,
        },
    )  # fmt: skip


def backward(
    d_loss_B, velocity_SBP, x0_BCFYX, noise_BCFYX, weight_B, first_token, d_velocity_SBP, tiled: Tile | None = None
) -> Iterator[Launch]:
    tiled = tiled or config(x0_BCFYX.shape[1], x0_BCFYX.dtype, BACKWARD)
    shared = _shared_arguments(velocity_SBP, x0_BCFYX, noise_BCFYX, first_token, tiled)
    yield Launch(
        kernel=_backward,
        grid=(shared["programs"], shared["samples"]),
        arguments=shared
        | strides(d_loss_B=d_loss_B, weight_B=weight_B)
        | {
            "d_loss": d_loss_B, "weight": weight_B, "d_velocity": d_velocity_SBP,
            "divisor": float(x0_BCFYX[0].numel()),
        },
        unified_buffer=tiled.bytes,
    )  # fmt: skip


def _shared_arguments(velocity_SBP, x0_BCFYX, noise_BCFYX, first_token: int, tiled: Tile) -> dict:
    tokens, samples, values = velocity_SBP.shape
    _, channels, _frames, rows, columns = x0_BCFYX.shape
    assert values == 4 * channels, (
        f"tokens have {values} values; patches of 2 x 2 with {channels} channels have four each"
    )
    patches = columns // 2
    crossed = triton.cdiv(first_token + tokens, patches) - first_token // patches if tokens else 0
    each = triton.cdiv(patches, tiled.rows)
    return {
        "velocity": velocity_SBP, "x0": x0_BCFYX, "noise": noise_BCFYX, "tokens": tokens, "samples": samples,
        "programs": shared_by(vector_cores(velocity_SBP), 2 * crossed * each, samples), "units": 2 * crossed * each,
        "runs": each, "first_token": first_token, "rows": rows, "columns": columns,
        **strides(velocity_SBP=velocity_SBP, x0_BCFYX=x0_BCFYX, noise_BCFYX=noise_BCFYX), "CHANNELS": channels,
        "BLOCK": tiled.columns // 2, "PATCHES": tiled.rows,
    }  # fmt: skip


flow_loss = operator("npu_triton", runs(forward), runs(backward))


def _compiled(kind: torch.dtype) -> Iterator[Compilation]:
    for tokens, samples, *latent in ((41472, 1, 16, 32, 54, 96), (11, 3, 3, 3, 2, 10)):
        velocity_SBP = on_meta(kind, tokens, samples, 4 * latent[0])
        x0_BCFYX, value_B = on_meta(kind, samples, *latent), on_meta(torch.float32, samples)
        given, label = (velocity_SBP, x0_BCFYX, x0_BCFYX), f"B {samples}, C {latent[0]}, {kind}"
        yield from compilations(label, forward(*given, value_B, 2, value_B))
        yield from compilations(label, backward(value_B, *given, value_B, 2, velocity_SBP))


COMPILED = tuple(each for kind in (torch.bfloat16, torch.float32) for each in _compiled(kind))
