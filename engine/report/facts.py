"""Everything a report tells of a run, gathered from its folder; what is not there is left out, not invented."""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..config import RunConfig
from ..config_yaml import CONFIG_FILE, load
from ..metrics import read_metrics
from ..run_files import METRICS_FILE, OUTCOME_FILE, PROFILE_FOLDER, RESTARTS_FILE, SHEET_FILE
from .trace import RankProfile, read_trace

Line = dict[str, Any]

WARM_UP = 2
"""Steps of a process that medians leave out: memory is laid out and kernels are first called."""

NEEDED = ("loss", "grad_norm", "lr", "seconds", "tokens_per_second", "tflops", "memory")
"""What every line of a step holds; mfu and hfu are null where no peak is known."""


@dataclass(frozen=True, kw_only=True)
class Restart:
    """One job of a run, as its launcher wrote it down; None where the line lacks it."""

    start: float | None
    """time.time()"""
    end: float | None
    first_step: int | None
    last_step: int | None
    status: str
    job: str
    nodes: str


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """A run as it lies on the disk."""

    folder: Path
    config: RunConfig
    training: list[Line]
    validation: list[Line]
    outcome: dict[str, Any] | None
    """None: under way, or it died."""
    ranks: list[RankProfile]
    """Of the newest profile."""
    profile: str
    """Its folder's name; empty: none."""
    restarts: list[Restart]
    sheet: Path | None

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    def median(self, name: str) -> float | None:
        """Of a metric over all steps but the first; None where no line has it."""
        values = [line[name] for line in self.training[WARM_UP:] or self.training if line.get(name) is not None]
        return statistics.median(values) if values else None

    @property
    def world(self) -> int | None:
        """Ranks of the profiled run: config.yaml does not tell."""
        return self.ranks[0].world if self.ranks else None

    @property
    def trained_seconds(self) -> float:
        """Of the steps that count: what a restart repeated is not in it."""
        return sum(line["seconds"] for line in self.training)

    @property
    def goodput(self) -> float | None:
        """Share of the time since the first job began that went into steps that count."""
        starts = [each.start for each in self.restarts if each.start is not None]
        ends = [each.end for each in self.restarts if each.end is not None]
        if not starts or not ends or max(ends) <= min(starts):
            return None
        return self.trained_seconds / (max(ends) - min(starts))


def read_run(folder: Path, *, with_profile: bool = True) -> RunFacts:
    """`with_profile` False: traces, which take seconds to read, are left alone.

    Raises ValueError where the folder holds no run that has trained, or a damaged file."""
    if not (folder / CONFIG_FILE).is_file():
        raise ValueError(f"{folder} holds no {CONFIG_FILE}: give the folder of a run that has trained")
    lines = read_metrics(folder / METRICS_FILE)
    training = [line for line in lines if "loss" in line]
    if not training:
        raise ValueError(f"{folder / METRICS_FILE} holds no step yet: wait for the run's first lines")
    for line in training:
        wrong = [name for name in NEEDED if not isinstance(line.get(name), (int, float))]
        if wrong:
            raise ValueError(
                f"{folder / METRICS_FILE}: the line of step {line['step']} has no {wrong[0]} that is a number: "
                "restore the file, or remove that line"
            )
    outcome, sheet = folder / OUTCOME_FILE, folder / SHEET_FILE
    profile = _newest_profile(folder) if with_profile else None
    return RunFacts(
        folder=folder,
        config=load(folder / CONFIG_FILE),
        training=training,
        validation=[line for line in lines if "validation_loss" in line],
        outcome=_json(outcome.read_text(encoding="utf-8")) if outcome.is_file() else None,
        ranks=[read_trace(path) for path in sorted(profile.glob("rank-*.trace.json.gz"))] if profile else [],
        profile=profile.name if profile else "",
        restarts=read_restarts(folder / RESTARTS_FILE),
        sheet=sheet if sheet.is_file() else None,
    )


def _newest_profile(folder: Path) -> Path | None:
    """By the time of its traces, not of its folder, which a look at it may touch."""
    traces = list((folder / PROFILE_FOLDER).glob("steps-*/rank-*.trace.json.gz"))
    return max(traces, key=lambda path: (path.stat().st_mtime, path)).parent if traces else None


def read_restarts(path: Path) -> list[Restart]:
    """Every line that is a JSON object; a half one, which a job that was killed leaves, is passed over."""
    if not path.is_file():
        return []
    found = [_json(line) for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    return [
        Restart(
            start=_moment(line.get("start")),
            end=_moment(line.get("end")),
            first_step=_whole(line.get("first_step")),
            last_step=_whole(line.get("last_step")),
            status=_text(line.get("status")),
            job=_text(line.get("job")),
            nodes=_text(line.get("nodes")),
        )
        for line in found
        if line is not None
    ]


def _json(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _moment(value: Any) -> float | None:
    """Seconds since 1970, from a number or ISO 8601."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
