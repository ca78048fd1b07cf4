"""flow_noise in Triton for Ascend: as many programs as vector cores share a sample's values, in runs.

Data that is not contiguous is copied first: taken apart into its axes, a value's place would be no access that the copy
engine makes, and all of it is small beside one block of the model.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ..ascend_memory import Live, Tile, shared_by, tile, vector_cores
from ..ascend_philox import first_words, normal
from ..compilation import Compilation, Launch, compilations, on_meta, runs
from ..philox import Stream
from ..triton_rows import strides
from .operator import operator


@triton.jit(do_not_specialize=["step", "seed_low", "seed_high", "values", "programs"])
def _forward(
    x0, sigma, sample, x_t, noise, step: tl.int64, seed_low: tl.int64, seed_high: tl.int64, values: tl.int64, programs,
    sigma_b, sample_b, STREAM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1).to(tl.int64)
    start = batch * values
    level = tl.load(sigma + batch * sigma_b).to(tl.float32)
    identity = tl.load(sample + batch * sample_b).to(tl.int32)
    place = tl.arange(0, BLOCK)
    for block in range(tl.program_id(0), tl.cdiv(values, BLOCK), programs):
        begin = tl.cast(block, tl.int64) * BLOCK
        there = begin + place < values
        # Up to 2**32 values a sample: as counters they wrap into int32.
        word0, word1 = first_words(
            seed_low.to(tl.int32), seed_high.to(tl.int32), begin.to(tl.int32) + place, identity, step.to(tl.int32),
            STREAM,
        )  # fmt: skip
        made = normal(word0, word1).to(noise.dtype.element_ty)
        tl.store(noise + start + begin + place, made, mask=there)
        data = tl.load(x0 + start + begin + place, mask=there, other=0.0).to(tl.float32)
        mixed = (1.0 - level) * data + level * made.to(tl.float32)
        tl.store(x_t + start + begin + place, mixed.to(x_t.dtype.element_ty), mask=there)


LIVE = Live(streamed=3, work=24)
"""x0, noise and x_t; four words, their halves and products, what logarithm and cosine carry along."""
_MOST_COLUMNS = 1024


def config(dtype: torch.dtype) -> Tile:
    """One row: values have no order but their own."""
    return tile("flow_noise by npu_triton", LIVE, _MOST_COLUMNS, dtype, most=1)


def forward(
    x0_BCFYX, sigma_B, sample_B, step, seed_low, seed_high, x_t_BCFYX, noise_BCFYX, tiled: Tile | None = None
) -> Iterator[Launch]:
    tiled = tiled or config(x0_BCFYX.dtype)
    samples, values = x0_BCFYX.shape[0], x0_BCFYX[0].numel()
    programs = shared_by(vector_cores(x0_BCFYX), triton.cdiv(values, tiled.columns), samples)
    yield Launch(
        kernel=_forward,
        grid=(programs, samples),
        arguments={
            "x0": x0_BCFYX.contiguous(), "sigma": sigma_B, "sample": sample_B, "x_t": x_t_BCFYX, "noise": noise_BCFYX,
            "step": step, "seed_low": seed_low, "seed_high": seed_high, "values": values, "programs": programs,
            **strides(sigma_B=sigma_B, sample_B=sample_B), "STREAM": int(Stream.NOISE), "BLOCK": tiled.columns,
        },
        unified_buffer=tiled.bytes,
    )  # fmt: skip


flow_noise = operator("npu_triton", runs(forward))


def _compiled(kind: torch.dtype) -> Iterator[Compilation]:
    for samples, *latent in ((1, 16, 32, 54, 96), (3, 3, 3, 2, 10)):
        x0_BCFYX = on_meta(kind, samples, *latent)
        sigma_B, sample_B = on_meta(torch.float32, samples), on_meta(torch.int64, samples)
        label = f"B {samples}, {kind}"
        yield from compilations(label, forward(x0_BCFYX, sigma_B, sample_B, 1, 2, 3, x0_BCFYX, x0_BCFYX))


COMPILED = tuple(each for kind in (torch.bfloat16, torch.float32) for each in _compiled(kind))
