"""How much memory a rank needs at its fullest moment, part by part; the parts are the total.

Weights, gradients and states are what parallel/training.py and parallel/optimizer.py allocate; activations what blocks
keep (activations.py) for as many microbatches as the schedule has under way (schedule.py). The worst pipeline rank
counts. tests/engine/planner/test_memory.py compares with the tensors of real runs.
"""

from dataclasses import dataclass, replace
from functools import cache, cached_property

from ...model.stages import Stage
from ...model.volume import GRADIENT_BYTES
from ...parallel.config import ParallelConfig
from ..config import RunConfig
from ..hardware import Hardware
from .activations import BlockMemory, Moment
from .held import Alike, alike, held_by, runs_of
from .schedule import in_flight
from .shape import Shape

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one rank, all alive at the same moment."""

    weights: int
    gradients: int
    optimizer: int
    """Moments, and in 16 bits the fp32 masters; in fp32 the weights are their own masters."""
    ema: int
    activations: int
    attention_workspace: int
    communication: int
    """What collectives and messages are put together in, or arrive in."""

    @property
    def total(self) -> int:
        return sum(vars(self).values())

    def in_gib(self) -> dict[str, float]:
        return {part: size / GIB for part, size in vars(self).items()}


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """A step's memory in one layout."""

    config: RunConfig
    world: int
    hardware: Hardware
    shape: Shape

    @property
    def worst(self) -> Memory:
        """Of the pipeline rank that needs most."""
        ranks = (self.of_rank(rank) for rank in range(self.layout.pipeline))
        return max(ranks, key=lambda memory: memory.total)

    def of_rank(self, rank: int) -> Memory:
        """Of the first rank of pipeline rank `rank`."""
        runs = runs_of(self.config.model, self.layout.stages)[rank :: self.layout.pipeline]
        held = sum(held_by(self.config.model, self.layout.tensor).by(run) for run in runs)
        shards = self.summing if self.layout.distributed_optimizer else 1
        moment = max(self.moments(rank, runs, held), key=lambda moment: moment.total)
        return Memory(
            weights=held * self.value_bytes,
            gradients=held * GRADIENT_BYTES,
            optimizer=(8 if self.value_bytes == 4 else 12) * held // shards,
            ema=4 * held // shards,
            **vars(moment),
        )

    def moments(self, rank: int, runs: list[Stage], held: int) -> list[Moment]:
        """Every moment that can be the fullest, with all that is kept then."""
        kept = [self.kept(run) for run in runs]
        batches = self.block.batch
        found = []
        # The steady state repeats: a few rounds show all of it.
        seen = min(self.microbatches, 4 * self.layout.pipeline)
        for chunk, counts in in_flight(self.layout.pipeline, self.layout.virtual_pipeline, seen, rank):
            others = sum(count * size for count, size in zip(counts, kept, strict=True)) - kept[chunk]
            found += [
                replace(
                    moment,
                    activations=moment.activations + others + batches,
                    communication=moment.communication + self.buffers(runs[chunk]),
                )
                for moment in self.backward(runs[chunk])
            ]
        if self.hardware.is_host and self.layout.distributed_optimizer and self.summing > 1:
            found.append(Moment(activations=batches, communication=held * GRADIENT_BYTES))
        return found

    def kept(self, run: Stage) -> int:
        """Of one microbatch that went forward through a run of blocks."""
        return self.kept_until(run, run.end) + self.behind(run)

    def kept_until(self, run: Stage, end: int) -> int:
        """Of a run's blocks in front of block `end`, and of what comes before them."""
        before = self.block.embedded if run.is_first else self.block.row
        blocks_kept = sum(
            self.block.kept(group.begin, group.recompute) * (min(group.end, end) - group.begin)
            for group in self.alike(run)
            if group.begin < end
        )
        return self.block.rotation + before + blocks_kept

    def behind(self, run: Stage) -> int:
        """Behind the last block: what is sent on; or the head's input, the velocity, and what the loss compares."""
        if not run.is_last:
            return self.block.packed
        video, model = self.block.video, self.config.model
        compared = 2 * self.config.trainer.micro_batch * model.channels * self.shape.latents * 4
        return video.x + video.norms + video.x // model.width * model.token_width + compared

    def backward(self, run: Stage) -> list[Moment]:
        """The fullest moments of a run's backward, what it keeps of this microbatch included."""
        sent = 0 if run.is_last else self.block.packed  # the head's backward comes first, and lets go of what it kept
        return [
            replace(moment, activations=moment.activations + self.kept_until(run, group.end) + sent)
            for group in self.alike(run)
            for moment in self.block.moments(group.begin, group.recompute)
        ]

    def buffers(self, run: Stage) -> int:
        """What communication holds all the time."""
        held = max(self.block.video.gathered, self.block.text.gathered) if self.layout.sequence else 0
        if self.layout.pipeline > 1 and not run.is_last:
            held += self.block.packed  # the gradient that came from the next run
        return held

    def alike(self, run: Stage) -> tuple[Alike, ...]:
        return alike(run, self.config.trainer.recompute, self.config.trainer.recompute_blocks)

    @cached_property
    def block(self) -> BlockMemory:
        within = replace(self.layout, pipeline=1, virtual_pipeline=1)
        has_workspace = not self.hardware.is_host
        return _block(
            self.config.model, within, self.shape, self.config.trainer.micro_batch, self.value_bytes, has_workspace
        )

    @property
    def layout(self) -> ParallelConfig:
        return self.config.parallel

    @property
    def value_bytes(self) -> int:
        return 2 if self.config.trainer.precision == "bf16" else 4

    @property
    def summing(self) -> int:
        """Ranks whose gradients add up."""
        return self.layout.data_size(self.world) * self.layout.context

    @cached_property
    def microbatches(self) -> int:
        return self.config.micro_batches(self.world)


@cache
def _block(model, layout, shape, samples, value_bytes, has_workspace) -> BlockMemory:
    """Blocks do not know which stage they are in."""
    return BlockMemory(
        config=model, layout=layout, shape=shape, samples=samples, value_bytes=value_bytes, has_workspace=has_workspace
    )
