"""What ranks run for the planner's tests: real steps of a small run, and what was seen of them."""

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from contentv.engine.live_memory import LiveMemory
from contentv.engine.session import DTYPES, build_training, set_weights
from contentv.kernels.registry import choose
from contentv.model.flow import Caption, Clips, FlowMatching
from contentv.parallel.mesh import build_mesh, leave_world
from tests.engine.planner.small_runs import LATENTS, TEXT_TOKENS, small_run
from tests.parallel.programs import microbatches, step_of


class RealRun:
    """Model, optimizer and batches of a small run, one rank's part."""

    def __init__(self, run: dict, latents: list[int] = LATENTS, text_tokens: int = TEXT_TOKENS):
        torch.set_num_threads(1)
        self.config = config = small_run(**run)
        self.mesh = build_mesh(config.parallel)
        kernels = choose("cpu", dtype=DTYPES[config.trainer.precision])
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


def step_seconds(*, runs: list[dict], rounds: int) -> list[list[float]]:
    """Seconds of steps of several runs of one world, which take turns, so that all of them see the same machine."""
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for number, given in enumerate(runs):
            real = RealRun(**given)
            real.take_step(1)
            for step in (2, 3):
                torch.distributed.barrier()
                started = time.perf_counter()
                real.take_step(step)
                torch.distributed.barrier()
                seconds[number].append(time.perf_counter() - started)
    leave_world()
    return seconds
