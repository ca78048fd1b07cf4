"""Which blocks and parameters a rank holds: answers that many layouts ask for alike, and are given once."""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from ...model.config import ModelConfig, Recompute
from ...model.stages import Stage, stages
from ...model.volume import Held, count_held
from ...parallel.config import ParallelConfig


@dataclass(frozen=True)
class Alike:
    """Blocks [begin, end) of a run, which all keep and compute the same."""

    begin: int
    end: int
    recompute: Recompute


@cache
def alike(run: Stage, recompute: Recompute, blocks: int) -> tuple[Alike, ...]:
    """A run cut where its blocks differ: the first `blocks` (0: all) recompute, and the model's last one is lighter."""
    recomputing = run.recomputing(blocks)
    edges = sorted({run.begin, recomputing.stop, run.end - run.is_last, run.end})
    return tuple(Alike(begin, end, recompute if begin in recomputing else "none") for begin, end in pairwise(edges))


@cache
def runs_of(model: ModelConfig, count: int) -> list[Stage]:
    """`stages`, which many layouts ask for alike."""
    return stages(model, count)


@cache
def held_by(model: ModelConfig, tensor: int) -> Held:
    """`count_held`, which depends on the tensor degree alone."""
    return count_held(model, ParallelConfig(tensor=tensor))
