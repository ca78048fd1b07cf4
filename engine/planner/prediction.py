"""One layout's step: its memory and its time, part by part, and what a run of such steps comes to."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from ...model.cost import StepOperations, count_operations
from ..config import RunConfig
from ..hardware import Hardware, Peak, Utilisation
from .activations import BlockMemory
from .efficiencies import Efficiencies
from .held import runs_of
from .memory import GIB, Memory, StepMemory
from .rates import Rates, rates_of
from .shape import Shape
from .timing import BlockTimes, StepTime, Times
from .work import BlockWork

USABLE = 0.9
"""Of a device's memory: the rest is the driver's, the communication library's, and what the allocator cannot join."""
SECONDS_A_DAY = 86_400


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a run in this layout will need and take."""

    config: RunConfig
    world: int
    hardware: Hardware
    shape: Shape
    memory: Memory
    """Of the worst rank, bytes."""
    times: Times
    """Of the busiest rank, seconds."""
    operations: StepOperations
    rates: Rates

    @property
    def memory_gib(self) -> dict[str, float]:
        """By part; the parts add up to `total_gib`."""
        return self.memory.in_gib()

    @property
    def total_gib(self) -> float:
        return self.memory.total / GIB

    @property
    def usable_gib(self) -> float | None:
        """None where the device has no memory of its own."""
        return USABLE * self.hardware.memory_gib or None

    @property
    def fits(self) -> bool:
        return self.usable_gib is None or self.total_gib <= self.usable_gib

    @property
    def step_seconds(self) -> float:
        return self.times.total

    @property
    def time_seconds(self) -> Mapping[str, float]:
        """By part; the parts add up to `step_seconds`."""
        return dict(vars(self.times))

    @property
    def mfu(self) -> float | None:
        """Share of the devices' peak by what the model asks for; None where no peak is known."""
        return self._used.mfu

    @property
    def hfu(self) -> float | None:
        """The same by what the devices execute, recomputation included."""
        return self._used.hfu

    @property
    def tflops(self) -> float:
        """Of each device, what the model asks for."""
        return self._used.tflops

    @property
    def days(self) -> float:
        """Of trainer.max_steps such steps, without restarts, checkpoints and validation."""
        return self.config.trainer.max_steps * self.step_seconds / SECONDS_A_DAY

    @property
    def device_hours(self) -> float:
        return 24 * self.days * self.world

    @cached_property
    def _used(self) -> Utilisation:
        trainer = self.config.trainer
        peak = trainer.peak_tflops or self.hardware.peak_tflops.get(trainer.precision)
        return Utilisation.of(
            self.operations, seconds=self.step_seconds, devices=self.world, peak=Peak(tflops=peak, reason="planned")
        )


def predict(config: RunConfig, world: int, hardware: Hardware, shape: Shape, rates: Rates | None = None) -> Prediction:
    """A step of `config` on `world` devices, every sample of that shape; `rates`: instead of the table's.

    Raises:
        ValueError: the layout divides neither model, batch nor world (the engine's own words), or no peak is known.
    """
    config.micro_batches(world)
    memory = StepMemory(config=config, world=world, hardware=hardware, shape=shape)
    rates = rates or device_rates(config, hardware)
    return Prediction(
        config=config,
        world=world,
        hardware=hardware,
        shape=shape,
        memory=memory.worst,
        times=step_time(config, world, memory.block, block_times(config, world, hardware, shape, rates)).times(),
        operations=operations(config, shape),
        rates=rates,
    )


def device_rates(config: RunConfig, hardware: Hardware, efficiencies: Efficiencies | None = None) -> Rates:
    trainer = config.trainer
    return rates_of(
        hardware, trainer.precision, peak_tflops=trainer.peak_tflops, repeatable=config.kernels.repeatable,
        efficiencies=efficiencies,
    )  # fmt: skip


def block_times(config: RunConfig, world: int, hardware: Hardware, shape: Shape, rates: Rates) -> BlockTimes:
    """What passes through one block take, whatever the pipeline."""
    work = BlockWork(
        config=config.model, layout=config.parallel, shape=shape, samples=config.trainer.micro_batch,
        value_bytes=2 if config.trainer.precision == "bf16" else 4,
    )  # fmt: skip
    return BlockTimes(layout=config.parallel, work=work, hardware=hardware, rates=rates, world=world)


def step_time(config: RunConfig, world: int, block: BlockMemory, blocks: BlockTimes) -> StepTime:
    return StepTime(
        config=config, world=world, blocks=blocks, batch_bytes=block.batch, packed_bytes=block.packed,
        value_bytes=block.value_bytes,
    )  # fmt: skip


def operations(config: RunConfig, shape: Shape) -> StepOperations:
    """Of a step of the whole global batch."""
    trainer = config.trainer
    runs = runs_of(config.model, config.parallel.stages)
    return count_operations(
        config.model,
        video_tokens=shape.video_tokens,
        text_tokens=shape.text_tokens,
        batch=trainer.global_batch,
        recompute=trainer.recompute,
        recomputing={layer for run in runs for layer in run.recomputing(trainer.recompute_blocks)},
    )
