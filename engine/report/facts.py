"""Everything a report tells of a run, gathered from its folder; what is not there is left out, not invented."""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import RunConfig
from ..config_yaml import CONFIG_FILE, load
from ..metrics import read_metrics
from ..restarts import Attempt, Restarts
from ..run_files import METRICS_FILE, OUTCOME_FILE, PROFILE_FOLDER, SHEET_FILE
from .trace import RankProfile, read_trace

Line = dict[str, Any]

WARM_UP = 2
"""Steps of a process that medians leave out: memory is laid out and kernels are first called."""

NEEDED = ("loss", "grad_norm", "lr", "seconds", "tokens_per_second", "tflops", "memory")
"""What every line of a step holds; mfu and hfu are null where no peak is known."""


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
    attempts: list[Attempt]
    """Of `contentv launch`; none of a run that was started by hand."""
    goodput: dict[str, float | int] | None
    """As engine/restarts.py has it."""
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
    restarts = Restarts(folder)
    return RunFacts(
        folder=folder,
        config=load(folder / CONFIG_FILE),
        training=training,
        validation=[line for line in lines if "validation_loss" in line],
        outcome=_json(outcome.read_text(encoding="utf-8")) if outcome.is_file() else None,
        ranks=[read_trace(path) for path in sorted(profile.glob("rank-*.trace.json.gz"))] if profile else [],
        profile=profile.name if profile else "",
        attempts=restarts.attempts(),
        goodput=restarts.goodput(),
        sheet=sheet if sheet.is_file() else None,
    )


def _newest_profile(folder: Path) -> Path | None:
    """By the time of its traces, not of its folder, which a look at it may touch."""
    traces = list((folder / PROFILE_FOLDER).glob("steps-*/rank-*.trace.json.gz"))
    return max(traces, key=lambda path: (path.stat().st_mtime, path)).parent if traces else None


def _json(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
