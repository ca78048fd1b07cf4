"""The points of an array of jobs: every combination of the values of `--grid`, each with its own folder.

Imports no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..engine.config import RunConfig
from ..engine.grid import changed, combinations, parse_grid


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run: of an array one of its points."""

    config: RunConfig
    run: Path
    """Its folder, absolute."""


def points_of(config: RunConfig, grid: Sequence[str]) -> list[Point]:
    """The run itself; or, with --grid, every combination of its values, each in a folder of its own below the run's."""
    base = Path(config.run.folder)
    if not grid:
        return [Point(config=config, run=base.absolute())]
    points = []
    for values in combinations(parse_grid(grid, config)):
        folder = base / ",".join(f"{key}={value}" for key, value in values.items())
        point = changed(config, {**values, "run.folder": str(folder)})
        points.append(Point(config=point, run=folder.absolute()))
    return points
