"""A grid of runs: which points there are, which of them are impossible, what each one measured. Imports no torch.

A point is a whole configuration in a folder of its own. What a point has measured is read from its run folder alone, so
an interrupted sweep goes on where it was, whoever ran its points.
"""

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..parallel.durable import write_text
from .config import RunConfig
from .config_yaml import to_yaml
from .grid import Grid, changed, combinations
from .run_files import OUTCOME_FILE

POINT_FILE = "point.json"
CONFIG_FILE = "point.yaml"
Scaling = Literal["strong", "weak"]
Status = Literal["open", "running", "done", "refused", "failed"]
"""open: not started; running: handed to a scheduler; done: measured; refused: impossible; failed: the rest."""

STRONG, WEAK = "strong", "weak"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run of a sweep."""

    name: str
    """Of its folder."""
    world: int
    scaling: tuple[Scaling, ...]
    """Which curves it is a point of: the smallest world is one of both."""
    values: dict[str, str]
    """Key of the grid -> the point's value, as it was given."""
    folder: Path
    config: RunConfig | None
    reason: str
    """Why there is none: the engine's own refusal."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is swept."""

    base: RunConfig
    grid: Grid
    worlds: tuple[int, ...]
    scaling: tuple[Scaling, ...]
    steps: int
    folder: Path

    def points(self) -> list[Point]:
        """All of them, the impossible ones too, small worlds first."""
        found: dict[str, Point] = {}
        for world, scaling in itertools.product(sorted(self.worlds), self.scaling):
            for values in combinations(self.grid):
                point = self._point(world, scaling, values)
                if point.name in found:  # the smallest world: weak and strong begin together
                    other = found[point.name]
                    point = _joined(other, point)
                found[point.name] = point
        return list(found.values())

    def _point(self, world: int, scaling: Scaling, values: dict[str, str]) -> Point:
        smallest = min(self.worlds)
        is_larger = scaling == WEAK and world > smallest
        changes = dict(values)
        if is_larger:
            if self.base.trainer.global_batch * world % smallest:
                raise ValueError(
                    f"--world {world} over {smallest} does not multiply trainer.global_batch, "
                    f"{self.base.trainer.global_batch}, to a whole number: choose worlds that do"
                )
            changes["trainer.global_batch"] = str(self.base.trainer.global_batch * world // smallest)
        parts = [
            f"world-{world}",
            *(f"{key}-{value}" for key, value in values.items()),
            *(["weak"] if is_larger else []),
        ]
        name = ".".join(parts).replace("/", "_")
        changes |= {
            "run.folder": str(self.folder / name),
            "trainer.max_steps": str(self.steps),
            "trainer.checkpoint_every": str(self.steps),
            "trainer.validate_every": "0",
            "trainer.log_every": "1",
        }
        config, reason = None, ""
        try:
            config = changed(self.base, changes)
            config.micro_batches(world)
            config.profile.check(self.steps)
        except ValueError as error:
            config, reason = None, str(error)
        return Point(
            name=name,
            world=world,
            scaling=(scaling,),
            values=values,
            folder=self.folder / name,
            config=config,
            reason=reason,
        )


def _joined(one: Point, other: Point) -> Point:
    assert one.config == other.config, one.name
    return Point(**{**vars(one), "scaling": tuple(dict.fromkeys((*one.scaling, *other.scaling)))})


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is known of a point."""

    point: Point
    status: Status
    reason: str = ""
    measured: dict[str, float | None] | None = None
    predicted_seconds: float | None = None

    def plain(self) -> dict[str, Any]:
        """One flat record, for CSV and JSON."""
        config = self.point.config
        return {
            "name": self.point.name,
            "world": self.point.world,
            "scaling": "+".join(self.point.scaling),
            **self.point.values,
            "global_batch": config.trainer.global_batch if config else None,
            "status": self.status,
            "reason": self.reason,
            **dict.fromkeys(MEASURED, None),
            **(self.measured or {}),
            "predicted_seconds": self.predicted_seconds,
        }


MEASURED = ("seconds", "tokens_per_second", "tflops", "mfu", "memory", "loss")
"""Medians of a step, and of the last one memory (MiB, of rank 0) and loss."""


def status_of(point: Point, measure: Callable[[Path], dict[str, float | None]]) -> Row:
    """What a point's folder tells. `measure`: a finished run's folder -> its MEASURED."""
    if point.config is None:
        return Row(point=point, status="refused", reason=point.reason)
    if not _is_of(point):
        return Row(point=point, status="open")
    if (outcome := _read(point.folder / OUTCOME_FILE)) and outcome.get("complete"):
        return Row(point=point, status="done", measured=measure(point.folder))
    noted = _read(point.folder / POINT_FILE) or {}
    return Row(point=point, status=noted.get("status", "open"), reason=noted.get("reason", ""))


def _is_of(point: Point) -> bool:
    """Whether the folder is this very point's: another number of steps, say, leaves the name as it is."""
    path = point.folder / CONFIG_FILE
    return path.is_file() and path.read_text(encoding="utf-8", errors="replace") == to_yaml(point.config)


def note(point: Point, status: Status, reason: str = "") -> None:
    """Writes down what became of a point that left no result."""
    write_text(point.folder / POINT_FILE, json.dumps({"status": status, "reason": reason}) + "\n")


def prepare(point: Point) -> Path:
    """The point's folder with its configuration, which `contentv train` takes; its path."""
    assert point.config is not None, point.name
    point.folder.mkdir(parents=True, exist_ok=True)
    path = point.folder / CONFIG_FILE
    write_text(path, to_yaml(point.config))
    return path


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
