"""The points of a sweep: every combination of the values of `--grid section.key=value,value`, each with its own folder.

Imports no torch.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..engine.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run: of a sweep one of its points."""

    config: RunConfig
    run: Path
    """Its folder, absolute."""


def points_of(config: RunConfig, grid: Sequence[str]) -> list[Point]:
    """The run itself; or, with --grid, every combination of its values, each in a folder of its own below the run's."""
    base = Path(config.run.folder).absolute()
    if not grid:
        return [Point(config=config, run=base)]
    axes = [_axis(given) for given in grid]
    points = []
    for values in itertools.product(*(values for _, values in axes)):
        chosen = [(name, value) for (name, _), value in zip(axes, values, strict=True)]
        folder = base / ",".join(f"{name}={value}" for name, value in chosen)
        changes = [word for name, value in chosen for word in (f"--{name.replace('_', '-')}", value)]
        changed = _changed(config, changes)
        run = replace(changed.run, folder=str(Path(config.run.folder) / folder.name))
        points.append(Point(config=replace(changed, run=run), run=folder))
    return points


def _axis(given: str) -> tuple[str, list[str]]:
    name, equals, values = given.partition("=")
    found = [value for value in values.split(",") if value]
    if not equals or "." not in name or not found or len(set(found)) < len(found):
        raise ValueError(f"--grid is {given!r}; write section.key=value,value with values that differ, for example "
                         "--grid parallel.tensor=1,2")  # fmt: skip
    if name == "run.folder":
        raise ValueError("--grid run.folder: every point has a folder of its own already, below run.folder")
    return name, found


def _changed(config: RunConfig, changes: list[str]) -> RunConfig:
    import tyro

    return tyro.cli(RunConfig, prog="contentv launch --grid", default=config, args=changes,
                    config=(tyro.conf.FlagConversionOff,))  # fmt: skip
