"""How fast one whole MM-DiT block runs forward and backward: everything a step does but its ends and its optimizer.

Operations are counted exactly (model/cost.py), so that TFLOP/s here and the model's MFU speak of the same thing.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch

from ..kernels.device import name_of, peak_memory_mib, profiler_activity, repeat_bits, wait_for
from ..kernels.registry import choose
from ..model.block import Block
from ..model.config import ModelConfig
from ..model.cost import count_block_operations
from ..model.positions import rope3d
from ..parallel.config import ParallelConfig
from ..parallel.layers import LayerFactory
from ..parallel.mesh import build_mesh
from .hardware import peak_of

WARM_UP = 2


@dataclass(frozen=True, kw_only=True)
class BlockBenchmark:
    """What is measured: the first block of a model, on one sample's tokens."""

    model: ModelConfig
    grid: tuple[int, int, int]
    """Frames, rows and columns of video tokens."""
    text_tokens: int
    precision: str
    """bf16 or fp32."""
    steps: int
    wish: str | dict[str, str] = "auto"
    """The kernels, as `registry.choose` takes them."""
    repeatable: bool = True
    """Whether "auto" takes only kernels that give the same bits twice."""
    profiled: bool = False
    """Whether the device's own kernels are listed, the longest first."""


@dataclass(frozen=True, kw_only=True)
class BlockMeasurement:
    """What `contentv bench block --json` prints."""

    ms: float
    """Median milliseconds, forward and backward."""
    forward_ms: float
    spread: float
    """Distance of the quartiles over the median."""
    tflops: float
    forward_tflops: float
    mfu: float | None
    """Share of the device's published peak."""
    memory_mib: float
    tokens: int
    device: str
    kernels: dict[str, str]
    """Operation -> backend."""
    longest: list[tuple[str, float]]
    """(name, milliseconds a step) of the device's kernels; empty unless they were asked for."""


def measure_block(wanted: BlockBenchmark) -> BlockMeasurement:
    """Builds the block on the present device with random weights and tokens, and times it."""
    mesh = build_mesh(ParallelConfig())
    repeat_bits(mesh.device, wanted.repeatable)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[wanted.precision]
    kernels = choose(mesh.device.type, wanted.wish, dtype=dtype, repeatable=wanted.repeatable)
    with mesh.device:
        block = Block(wanted.model, LayerFactory(mesh, dtype, kernels.product_of_its_own()), kernels, layer=0)
        for parameter in block.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
    video, text = prod(wanted.grid), wanted.text_tokens
    tokens = mesh.sharing.tokens(video=video, text=text)
    rotation = rope3d(wanted.grid, wanted.model.head_width, tokens.video.gathered, mesh.device)
    width = wanted.model.width
    shapes = (video, 1, width), (text, 1, width), (1, width)
    inputs = [torch.randn(shape, device=mesh.device, dtype=dtype, requires_grad=True) for shape in shapes]
    cotangents = [torch.randn(shape, device=mesh.device, dtype=dtype) for shape in shapes[:2]]

    def forward():
        return block(*inputs, tokens, rotation)

    def step() -> None:
        for tensor in (*inputs, *block.parameters()):
            tensor.grad = None
        torch.autograd.backward(forward(), cotangents)

    forwards, whole = (_seconds(work, wanted.steps, mesh.device) for work in (forward, step))
    seconds, forward_seconds = statistics.median(whole), statistics.median(forwards)
    quartiles = statistics.quantiles(whole, n=4) if len(whole) > 1 else (seconds,) * 3
    # Backward multiplies twice what forward does: by the weights and by the inputs, attention's two products likewise.
    operations = count_block_operations(wanted.model, 0, video_tokens=video, text_tokens=text)
    tflops = 3 * operations / seconds / 1e12
    peak = peak_of(name_of(mesh.device), wanted.precision).tflops
    return BlockMeasurement(
        ms=1e3 * seconds,
        forward_ms=1e3 * forward_seconds,
        spread=(quartiles[2] - quartiles[0]) / seconds,
        tflops=tflops,
        forward_tflops=operations / forward_seconds / 1e12,
        mfu=tflops / peak if peak else None,
        memory_mib=peak_memory_mib(mesh.device),
        tokens=video + text,
        device=name_of(mesh.device),
        kernels=kernels.choices(),
        longest=_longest(step, mesh.device) if wanted.profiled else [],
    )


def _seconds(work: Callable[[], object], times: int, device: torch.device) -> list[float]:
    """Of each call, the device's queue empty before it and after it."""
    taken = []
    for _ in range(WARM_UP + times):
        wait_for(device)
        started = time.perf_counter()
        work()
        wait_for(device)
        taken.append(time.perf_counter() - started)
    return taken[WARM_UP:]


def _longest(step, device: torch.device) -> list[tuple[str, float]]:
    activity = profiler_activity(device)
    with torch.profiler.profile(activities=[activity]) as profile:
        step()
        wait_for(device)
    key = "self_cpu_time_total" if activity == torch.profiler.ProfilerActivity.CPU else "self_device_time_total"
    events = sorted(profile.key_averages(), key=lambda event: -getattr(event, key))
    return [(event.key, getattr(event, key) / 1e3) for event in events[:25]]
