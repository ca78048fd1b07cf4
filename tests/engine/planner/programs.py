"""What ranks run for the planner's tests: real steps of a small run, and what was seen of them."""

import torch

from contentv.engine.session import DTYPES, build_training, set_weights
from contentv.kernels.registry import choose
from contentv.model.flow import Caption, Clips, FlowMatching
from contentv.parallel.mesh import build_mesh, leave_world
from tests.engine.planner.live_tensors import LiveTensors
from tests.engine.planner.small_runs import LATENTS, TEXT_TOKENS, small_run
from tests.parallel.programs import microbatches, step_of


class RealRun:
    """Model, optimizer and batches of a small run, one rank's part."""

    def __init__(self, run: dict, latents: list[int], text_tokens: int):
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

    def take_step(self, number: int) -> None:
        shape = microbatches([next(self.batches())], self.mesh)
        shape = type(shape)(count=self.count, samples=shape.samples, packed_rows=shape.packed_rows)
        self.model.forward_backward(step_of(self.flow, number), self.batches(), shape)
        self.optimizer.update(number, 1e-4, self.optimizer.gradient_norm())


def live_bytes(*, run: dict, latents: list[int] = LATENTS, text_tokens: int = TEXT_TOKENS, explain: bool = False):
    """The most bytes of tensors alive at once on this rank, over two steps."""
    with LiveTensors() as tensors:
        real = RealRun(run, latents, text_tokens)
        real.take_step(1)
        persisting, tensors.peak = tensors.live, 0
        real.take_step(2)
    report = {"peak": tensors.peak, "between steps": persisting}
    leave_world()
    return report
