"""What ranks run for the planner's tests: real steps of a small run, and what was seen of them."""

import contextlib
import io
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from contentv.engine.live_memory import LiveMemory
from contentv.engine.session import DTYPES, build_training, set_weights
from contentv.kernels.registry import choose
from contentv.launchers import bench
from contentv.model.flow import Caption, Clips, FlowMatching
from contentv.parallel.mesh import build_mesh, leave_world
from tests.engine.planner.calibration import measured_rows
from tests.engine.planner.small_runs import LATENTS, TEXT_TOKENS, small_run
from tests.parallel.programs import microbatches, step_of


class RealRun:
    """Model, optimizer and batches of a small run, one rank's part."""

    def __init__(self, run: dict, latents: list[int] = LATENTS, text_tokens: int = TEXT_TOKENS):
        torch.set_num_threads(1)
        self.config = config = small_run(**run)
        self.mesh = build_mesh(config.parallel)
        kernels = choose("cpu", config.kernels.wishes(), dtype=DTYPES[config.trainer.precision])
        self.model, self.optimizer = build_training(config, self.mesh, kernels)
        set_weights(self.model, self.optimizer, config)
        self.latents, self.text_tokens = latents, text_tokens
        model = config.model
        empty = Caption(torch.zeros(text_tokens, model.text_width), torch.zeros(model.pooled_width))
        self.flow = FlowMatching(config.flow, kernels, 0, empty)
        self.count = config.micro_batches(self.mesh.world_size)

    def batches(self):
        model, samples = self.config.model, self.config.trainer.micro_batch
        for number in range(self.count):
            yield Clips(
                torch.randn(samples, model.channels, *self.latents),
                Caption(
                    torch.randn(samples, self.text_tokens, model.text_width), torch.randn(samples, model.pooled_width)
                ),
                torch.arange(number * samples, (number + 1) * samples),
            )

    def take_step(self, number: int, watched: Callable = lambda step: step) -> None:
        """`watched` may wrap the forward step."""
        expected = replace(microbatches([next(self.batches())], self.mesh), count=self.count)
        self.model.forward_backward(watched(step_of(self.flow, number)), self.batches(), expected)
        self.optimizer.update(number, 1e-4, self.optimizer.gradient_norm())


def live_bytes(*, run: dict, latents: list[int] = LATENTS, text_tokens: int = TEXT_TOKENS) -> int:
    """The most bytes of tensors alive at once on this rank in a step that is not the first."""
    with LiveMemory(hidden=True) as tensors:
        real = RealRun(run, latents, text_tokens)
        real.take_step(1)
        tensors.peak = tensors.bytes
        real.take_step(2)
    leave_world()
    return tensors.peak


def order_of_passes(*, run: dict, latents: list[int], text_tokens: int) -> list[list]:
    """[direction, chunk, microbatch] of every pass of a step, as megatron's schedule asked for them."""
    real = RealRun(run, latents, text_tokens)
    passes: list[list] = []

    def recorded(step):
        def forward(module, batch):
            chunk = next(number for number, each in enumerate(real.model.chunks) if each is module)
            microbatch = int(batch.sample_B[0]) // len(batch.sample_B)
            passes.append(["forward", chunk, microbatch])
            output, loss = step(module, batch)
            output.register_hook(lambda _gradient: passes.append(["backward", chunk, microbatch]))
            return output, loss

        return forward

    real.take_step(1, recorded)
    leave_world()
    return passes


def bench_messages() -> str:
    """What `contentv bench messages --json` prints on this rank."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert bench.main(["messages", "--tries", "1", "--json"]) == 0
    return printed.getvalue()


def steps_and_calls(*, runs: list[dict], steps: int, seconds: float) -> dict:
    """Of several runs of one world the seconds of steps, and between them what the planner's rates are measured by: all
    take turns, so that all see the same machine. `shares`: of the processors' time during a run's steps, what this
    rank took and what everybody did."""
    times, shares, rows = [], [], []
    for number, given in enumerate(runs):
        real = RealRun(**given)
        real.take_step(1)
        torch.distributed.barrier()
        whole, own, busy = time.perf_counter(), time.process_time(), busy_seconds()
        times.append([timed_step(real, 2 + step) for step in range(steps)])
        whole = (time.perf_counter() - whole) * os.cpu_count()
        shares.append(((time.process_time() - own) / whole, (busy_seconds() - busy) / whole))
        rows += measured_rows(real.mesh, seconds, number, len(runs))
    leave_world()
    return {"times": times, "shares": shares, "rows": rows}


def timed_step(real: RealRun, number: int) -> float:
    torch.distributed.barrier()
    started = time.perf_counter()
    real.take_step(number)
    torch.distributed.barrier()
    return time.perf_counter() - started


def busy_seconds() -> float:
    """That this machine's processors have worked, for anybody; 0 where the system does not tell."""
    told = Path("/proc/stat")
    if not told.exists():
        return 0.0
    user, nice, system, _idle, _waiting, interrupts, soft, *_ = map(int, told.read_text().split("\n")[0].split()[1:])
    return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")
