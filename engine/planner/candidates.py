"""Every layout of a run on a world, and a time that none of them can beat, cheaply: what the search goes through.

A candidate fixes all but recomputation, which costs time and buys memory: the search adds as little as is needed.
Whether a layout exists is the engine's own word (ParallelConfig, RunConfig.micro_batches), and so is the reason if not.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

from ...parallel.config import ParallelConfig
from ..config import RunConfig
from ..hardware import Hardware
from .memory import StepMemory
from .prediction import block_times, step_time
from .rates import Rates
from .shape import Shape
from .timing import BlockTimes, Times

MICRO_BATCHES = (1, 2, 4, 8)
VIRTUAL = (1, 2, 4, 8)
LEAST_TOKENS, LEAST_CONTEXT = 256, 8
"""More context ranks than LEAST_CONTEXT are looked at only where each has so many tokens: messages rule below."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A layout that the engine would take."""

    config: RunConfig
    """Without recomputation."""
    bound: float
    """Seconds below which its step cannot come: all work shared out evenly, the least bubble, messages inside blocks
    and behind them as well hidden as can be."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A layout that the engine would refuse."""

    layout: ParallelConfig
    micro_batch: int
    data: int
    """Data-parallel ranks."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Of one run on one world."""

    config: RunConfig
    world: int
    hardware: Hardware
    shape: Shape
    rates: Rates
    refusals: dict[str, Refusal] = field(default_factory=dict)
    """The first of each kind."""
    known: dict[tuple, BlockTimes] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: {"taken": 0, "refused": 0})

    def __iter__(self) -> Iterator[Candidate]:
        base = replace(self.config.trainer, recompute="none", recompute_blocks=0)
        trainers = [
            replace(base, micro_batch=size) for size in MICRO_BATCHES if self.config.trainer.global_batch % size == 0
        ]
        for cell in self.cells():
            layouts, sample = list(self.pipelines(cell)), 0.0
            for trainer in trainers:
                for layout in layouts:
                    config = replace(self.config, parallel=layout, trainer=trainer)
                    count = self.count(config)
                    if count:
                        sample = sample or self.seconds_a_sample(config)
                        self.counts["taken"] += 1
                        yield Candidate(config=config, bound=self.bound(config, sample, count))

    def cells(self) -> Iterator[dict]:
        """What a block's work depends on: tensor, sequence, context and ulysses degrees."""
        tokens = self.shape.video_tokens + self.shape.text_tokens
        widest = self.hardware.devices_per_node if self.hardware.devices_per_node > 1 else self.world
        for tensor in divisors(self.world):
            if tensor > widest:
                break
            for sequence in (True, False) if tensor > 1 else (False,):
                for context in divisors(self.world // tensor):
                    if context > max(LEAST_CONTEXT, tokens // LEAST_TOKENS):
                        break
                    for ulysses in divisors(context):
                        yield {"tensor": tensor, "sequence": sequence, "context": context, "ulysses": ulysses}

    def pipelines(self, cell: dict) -> Iterator[ParallelConfig]:
        kept = self.config.parallel
        for pipeline in divisors(self.world // cell["tensor"] // cell["context"]):
            for virtual in VIRTUAL if pipeline > 1 else (1,):
                if pipeline * virtual <= max(self.config.model.layers, pipeline):
                    yield replace(kept, **cell, pipeline=pipeline, virtual_pipeline=virtual, distributed_optimizer=True)

    def count(self, config: RunConfig) -> int:
        """Microbatches of a step; 0 where the engine refuses, whose reason is kept."""
        try:
            return config.micro_batches(self.world)
        except ValueError as error:
            self.counts["refused"] += 1
            reason = str(error)
            kind = re.sub(r"\d+", "", reason)
            if kind not in self.refusals:
                layout = config.parallel
                self.refusals[kind] = Refusal(
                    layout=layout, micro_batch=config.trainer.micro_batch, data=layout.data_size(self.world),
                    reason=reason,
                )  # fmt: skip
            return 0

    def seconds_a_sample(self, config: RunConfig) -> float:
        """Least seconds of one sample through all blocks and both ends: many at once share what a launch costs, and no
        call is slower than the best."""
        most, layers = replace(config.trainer, micro_batch=MICRO_BATCHES[-1]), self.config.model.layers
        blocks = block_times(replace(config, trainer=most), self.world, self.hardware, self.shape, self.best_rates)
        inner, last = blocks.block(0, "none") if layers > 1 else (), blocks.block(layers - 1, "none")
        passes = [*(each * (layers - 1) for each in inner), *last, *(each for end in blocks.ends() for each in end)]
        return sum(passes, Times()).total / MICRO_BATCHES[-1]

    def bound(self, config: RunConfig, sample: float, count: int) -> float:
        memory = StepMemory(config=config, world=self.world, hardware=self.hardware, shape=self.shape)
        step = step_time(config, self.world, memory.block, self.blocks(config))
        return step.least(sample * config.trainer.micro_batch / config.parallel.pipeline, count)

    @cached_property
    def best_rates(self) -> Rates:
        return self.rates.best

    def blocks(self, config: RunConfig) -> BlockTimes:
        """Of a candidate; pipelines share it."""
        key = replace(config.parallel, pipeline=1, virtual_pipeline=1), config.trainer.micro_batch
        if key not in self.known:
            self.known[key] = block_times(config, self.world, self.hardware, self.shape, self.rates)
        return self.known[key]


def divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]
