"""The fastest layouts that fit a device's memory, and what does not fit, why, and what would.

Best first: candidates in the order of a time that they cannot beat; the search ends when as many as were asked for are
faster than anything left can be. Where all that a layout would keep does not fit, the least recomputation that makes it
fit is found, of each kind.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

from ...model.config import Recompute
from ..config import RunConfig
from ..hardware import Hardware
from .candidates import Candidates, Refusal
from .efficiencies import Efficiencies
from .memory import GIB, Memory, StepMemory
from .prediction import USABLE, Prediction, device_rates, operations, predict, step_time
from .rates import Rates
from .shape import Shape
from .timing import Times

MOST_TRIED = 4000
"""Candidates looked at for one bucket, so that a world where nothing fits ends too."""


@dataclass(frozen=True, kw_only=True)
class Misfit:
    """A layout that needs more memory than there is."""

    config: RunConfig
    data: int
    """Data-parallel ranks."""
    total_gib: float
    usable_gib: float
    change: str
    """The nearest change with which it fits, as the command line takes it."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Of one bucket on one world."""

    shape: Shape
    hardware: Hardware
    rates: Rates
    configured: Prediction | str
    """The configuration as it stands; or why the engine refuses it."""
    layouts: tuple[Prediction, ...]
    """That fit, the fastest first."""
    misfits: tuple[Misfit, ...]
    """The fastest that would be, if they fitted."""
    refusals: tuple[Refusal, ...]
    """One of each kind that the engine refuses."""
    taken: int
    """Layouts that the engine would take; recomputation and optimizer sharding not counted."""
    refused: int


@dataclass(frozen=True, kw_only=True)
class Search:
    """One bucket's."""

    config: RunConfig
    world: int
    hardware: Hardware
    shape: Shape
    top: int
    efficiencies: Efficiencies | None = None
    misfits: list[Misfit] = field(default_factory=list)
    memories: dict[tuple, Memory] = field(default_factory=dict)

    def plan(self) -> Plan:
        candidates = self.candidates
        heap = [(each.bound, number, each.config) for number, each in enumerate(candidates)]
        if not heap:
            raise ValueError(
                f"no layout of {self.world} processes divides this model and batch; the first reason: "
                f"{next(iter(candidates.refusals.values())).reason}"
            )
        return Plan(
            shape=self.shape,
            hardware=self.hardware,
            rates=self.rates,
            configured=self.configured(),
            layouts=tuple(self.best(heap)),
            misfits=tuple(self.misfits),
            refusals=tuple(candidates.refusals.values()),
            taken=candidates.counts["taken"],
            refused=candidates.counts["refused"],
        )

    def best(self, heap: list[tuple[float, int, RunConfig]]) -> list[Prediction]:
        """The fastest that fit."""
        heapq.heapify(heap)
        found: list[tuple[float, int, int, RunConfig, Times]] = []
        for number in range(MOST_TRIED):
            if not heap or (len(found) >= self.top and heap[0][0] >= sorted(found)[self.top - 1][0]):
                break
            _, _, candidate = heapq.heappop(heap)
            fitting = [(self.times(config), config) for config in self.fitting(candidate)]
            found += [
                (times.total, self.memory(config).total, len(found) + index, config, times)
                for index, (times, config) in enumerate(fitting)
            ]
            layout = candidate.parallel
            is_divided = layout.distributed_optimizer and layout.data_size(self.world) * layout.context > 1
            if fitting and number < self.top and is_divided:
                undivided = replace(candidate, parallel=replace(layout, distributed_optimizer=False))
                heapq.heappush(heap, (min(times.total for times, _ in fitting), -1 - len(found), undivided))
        return [self.prediction(config, times) for _, _, _, config, times in sorted(found)[: self.top]]

    def fitting(self, config: RunConfig) -> Iterator[RunConfig]:
        """The candidate as it is, if it fits; else with the least recomputation of each kind with which it does."""
        if self.fits(config):
            yield config
            return
        less = [found for kind in ("selective", "full") if (found := self.least(config, kind))]
        yield from less
        if len(self.misfits) < self.top and config.parallel.distributed_optimizer:
            change = self.change(config, min(less, key=lambda each: self.times(each).total, default=None))
            total = self.memory(config).total / GIB
            self.misfits.append(
                Misfit(
                    config=config,
                    data=config.parallel.data_size(self.world),
                    total_gib=total,
                    usable_gib=USABLE * self.hardware.memory_gib,
                    change=change,
                )
            )

    def least(self, config: RunConfig, kind: Recompute) -> RunConfig | None:
        """With the fewest recomputed blocks of each run that make it fit; None where all do not."""

        def recomputing(blocks: int) -> RunConfig:
            return replace(config, trainer=replace(config.trainer, recompute=kind, recompute_blocks=blocks))

        if not self.fits(recomputing(0)):
            return None
        most = -(-config.model.layers // config.parallel.stages)
        few, enough = 0, most
        while enough - few > 1:
            middle = (few + enough) // 2
            few, enough = (few, middle) if self.fits(recomputing(middle)) else (middle, enough)
        return recomputing(0 if enough == most else enough)

    def change(self, config: RunConfig, less: RunConfig | None) -> str:
        """The nearest change with which it fits."""
        if less is not None:
            blocks = less.trainer.recompute_blocks
            first = f" --trainer.recompute-blocks {blocks}" if blocks else ""
            return f"--trainer.recompute {less.trainer.recompute}{first}"
        full = replace(config, trainer=replace(config.trainer, recompute="full", recompute_blocks=0))
        for name, value in self.nearest(full):
            section = full.trainer if name == "micro_batch" else full.parallel
            part = {"trainer" if section is full.trainer else "parallel": replace(section, **{name: value})}
            changed = replace(full, **part)
            if self.divides(changed) and self.fits(changed):
                key = next(iter(part))
                return f"--trainer.recompute full --{key}.{name.replace('_', '-')} {value}"
        return "nothing that changes one degree: divide the model in several ways, or take devices with more memory"

    @staticmethod
    def nearest(config: RunConfig) -> Iterator[tuple[str, int | bool]]:
        """One degree changed, what costs least first."""
        layout = config.parallel
        smaller = config.trainer.micro_batch // 2
        while smaller:
            yield "micro_batch", smaller
            smaller //= 2
        if layout.tensor > 1 and not layout.sequence:
            yield "sequence", True
        for factor in (2, 4, 8):
            for name in ("context", "tensor", "pipeline"):
                yield name, factor * getattr(layout, name)

    def divides(self, config: RunConfig) -> bool:
        try:
            config.micro_batches(self.world)
        except ValueError:
            return False
        return True

    def configured(self) -> Prediction | str:
        try:
            return predict(self.config, self.world, self.hardware, self.shape, self.rates)
        except ValueError as error:
            return str(error)

    def fits(self, config: RunConfig) -> bool:
        limit = USABLE * self.hardware.memory_gib * GIB
        return not limit or self.memory(config).total <= limit

    def times(self, config: RunConfig) -> Times:
        return step_time(config, self.world, self.step_memory(config).block, self.candidates.blocks(config)).times()

    def prediction(self, config: RunConfig, times: Times) -> Prediction:
        return Prediction(
            config=config, world=self.world, hardware=self.hardware, shape=self.shape,
            memory=self.memory(config), times=times, operations=operations(config, self.shape), rates=self.rates,
        )  # fmt: skip

    def memory(self, config: RunConfig) -> Memory:
        """Of the worst rank."""
        key = config.parallel, config.trainer
        if key not in self.memories:
            self.memories[key] = self.step_memory(config).worst
        return self.memories[key]

    def step_memory(self, config: RunConfig) -> StepMemory:
        return StepMemory(config=config, world=self.world, hardware=self.hardware, shape=self.shape)

    @cached_property
    def candidates(self) -> Candidates:
        return Candidates(
            config=self.config, world=self.world, hardware=self.hardware, shape=self.shape, rates=self.rates
        )

    @cached_property
    def rates(self) -> Rates:
        return device_rates(self.config, self.hardware, self.efficiencies)


def plan(config: RunConfig, world: int, hardware: Hardware, shape: Shape, top: int = 10,
         efficiencies: Efficiencies | None = None) -> Plan:  # fmt: skip
    """The `top` fastest layouts of a run on `world` devices, every sample of that shape; `efficiencies`: measured on
    such a device.

    Raises:
        ValueError: an impossible world or number, a device without a known peak, or a world that nothing divides.
    """
    if not 1 <= world <= 2**16:
        raise ValueError(f"--world is {world}; it must be from 1 to {2**16} devices")
    if not 1 <= top <= 1000:
        raise ValueError(f"--top is {top}; it must be from 1 to 1000 layouts")
    return Search(config=config, world=world, hardware=hardware, shape=shape, top=top, efficiencies=efficiencies).plan()
