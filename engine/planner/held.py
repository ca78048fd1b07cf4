"""Which blocks and parameters a rank holds: answers that many layouts ask for alike, and are given once."""

from functools import cache

from ...model.config import ModelConfig
from ...model.stages import Stage, stages
from ...model.volume import Held, count_held
from ...parallel.config import ParallelConfig


@cache
def runs_of(model: ModelConfig, count: int) -> list[Stage]:
    """`stages`, which many layouts ask for alike."""
    return stages(model, count)


@cache
def held_by(model: ModelConfig, tensor: int) -> Held:
    """`count_held`, which depends on the tensor degree alone."""
    return count_held(model, ParallelConfig(tensor=tensor))
