"""flow_noise in Triton: one program makes a run of one sample's noise, mixes it and writes both.

The data may lie in any strides, so each value's place is taken apart into its axes; that costs less than the ten rounds
of the generator, and all of it is small beside one block of the model.

Bytes: reads x0, writes x_t and noise.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ..compilation import Compilation, Config, Launch, compilations, on_meta, runs
from ..philox import Stream
from ..triton_philox import normal, words
from ..triton_rows import strides
from .operator import operator


@triton.jit(do_not_specialize=["step", "seed_low", "seed_high", "frames", "rows", "columns"])
def _forward(
    x0, sigma, sample, x_t, noise, step: tl.int64, seed_low: tl.int64, seed_high: tl.int64, values, frames, rows,
    columns, x0_b, x0_c, x0_f, x0_y, x0_x, sigma_b, sample_b, STREAM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1).to(tl.int64)
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = element < values
    word0, word1, _word2, _word3 = words(seed_low, seed_high, element, tl.load(sample + batch * sample_b), step, STREAM)
    made = normal(word0, word1).to(noise.dtype.element_ty)
    tl.store(noise + batch * values + element, made, mask=there)

    # Below 2**32 by the contract: unsigned 32-bit division is a quarter of a 64-bit one.
    rest = element.to(tl.uint32)
    across, rest = rest % columns.to(tl.uint32), rest // columns.to(tl.uint32)
    down, rest = rest % rows.to(tl.uint32), rest // rows.to(tl.uint32)
    frame, channel = rest % frames.to(tl.uint32), rest // frames.to(tl.uint32)
    place = batch * x0_b + channel.to(tl.int64) * x0_c + frame.to(tl.int64) * x0_f
    place += down.to(tl.int64) * x0_y + across.to(tl.int64) * x0_x
    data = tl.load(x0 + place, mask=there, other=0.0).to(tl.float32)
    level = tl.load(sigma + batch * sigma_b).to(tl.float32)
    mixed = (1.0 - level) * data + level * made.to(tl.float32)
    tl.store(x_t + batch * values + element, mixed.to(x_t.dtype.element_ty), mask=there)


CONFIG = Config(rows=1, columns=1024, warps=4)


def forward(
    x0_BCFYX, sigma_B, sample_B, step, seed_low, seed_high, x_t_BCFYX, noise_BCFYX, config: Config = CONFIG
) -> Iterator[Launch]:
    samples, channels, frames, rows, columns = x0_BCFYX.shape
    values = channels * frames * rows * columns
    yield Launch(
        kernel=_forward,
        grid=(triton.cdiv(values, config.columns), samples),
        arguments={
            "x0": x0_BCFYX, "sigma": sigma_B, "sample": sample_B, "x_t": x_t_BCFYX, "noise": noise_BCFYX, "step": step,
            "seed_low": seed_low, "seed_high": seed_high, "values": values, "frames": frames, "rows": rows,
            "columns": columns, **strides(x0_BCFYX=x0_BCFYX, sigma_B=sigma_B, sample_B=sample_B),
            "STREAM": int(Stream.NOISE), "BLOCK": config.columns,
        },
        num_warps=config.warps,
    )  # fmt: skip


flow_noise = operator("gpu_triton", runs(forward))


def _compiled(kind: torch.dtype) -> Iterator[Compilation]:
    x0_BCFYX, sigma_B, sample_B = on_meta(kind, 1, 16, 32, 54, 96), on_meta(torch.float32, 1), on_meta(torch.int64, 1)
    yield from compilations(f"{kind}", forward(x0_BCFYX, sigma_B, sample_B, 1, 2, 3, x0_BCFYX, x0_BCFYX))


COMPILED = tuple(each for kind in (torch.bfloat16, torch.float32) for each in _compiled(kind))
