"""How a run goes, from the files of its folder. Imports no torch: it answers on a login node."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ..parallel.sighting import SILENT, slow_ranks
from . import config_yaml, heartbeats
from .restarts import Attempt, Restarts, step_lines
from .run_files import JOBS_FOLDER, METRICS_FILE
from .sent_jobs import SENT_FILE

STARTING = 1800
"""Seconds that an attempt may take to its first heartbeat: the node check, imports, and a checkpoint to load."""
LATEST = 50
"""Steps whose median tells the speed."""


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """What `contentv status` shows; with --json under the same names. None and empty where nothing is known."""

    folder: str
    state: str
    """complete, running, stopped, failed, not running, or not started."""
    why: str
    step: int
    max_steps: int | None
    checkpoint_step: int
    loss: float | str | None
    seconds_per_step: float | None
    seconds_left: float | None
    attempts: list[dict[str, Any]]
    goodput: dict[str, float | int] | None
    slow: list[str]
    silent: list[str]

    def lines(self) -> list[str]:
        """For a person."""
        of = f" of {self.max_steps}" if self.max_steps else ""
        shown = [f"{self.folder}: {self.state}{f', {self.why}' if self.why else ''}"]
        shown.append(f"step {self.step}{of}, last checkpoint {self.checkpoint_step}")
        if self.seconds_per_step is not None:
            shown[-1] += f", loss {self.loss}, {self.seconds_per_step:.3g} s a step"
        if self.seconds_left:
            shown[-1] += f", {self.seconds_left / 3600:.1f} h left"
        if self.goodput:
            shown.append(f"goodput {self.goodput['goodput']:.1%} over {self.goodput['attempts']} attempts "
                         f"({self.goodput['kept_seconds']:.0f} of {self.goodput['wall_seconds']:.0f} s)")  # fmt: skip
        shown += [_attempt_line(attempt) for attempt in self.attempts[-5:]]
        return shown + [f"slow: {line}" for line in self.slow] + [f"silent: {line}" for line in self.silent]


def run_status(folder: Path, now: float) -> RunStatus:
    """Raises ValueError for a folder that holds no run."""
    restarts = Restarts(folder)
    attempts, steps, config = restarts.attempts(), step_lines(folder / METRICS_FILE), _config(folder)
    beats = _beats(folder, attempts)
    if points := [path.parent.name for path in sorted(folder.glob(f"*/{SENT_FILE}"))]:
        raise ValueError(f"{folder} holds a sweep: name the folder of one of its points, {', '.join(points)}")
    if config is None and not attempts and not steps and not (folder / SENT_FILE).is_file():
        raise ValueError(f"{folder} holds no run: name the folder of --run.folder, for example runs/quickstart")
    max_steps = config.trainer.max_steps if config else None
    seconds = median(line["seconds"] for line in steps[-LATEST:]) if steps else None
    state, why = _state(restarts, attempts, beats, max_steps, now)
    is_running = state == "running"
    step = steps[-1]["step"] if steps else 0
    return RunStatus(
        folder=str(folder),
        state=state,
        why=why,
        step=step,
        max_steps=max_steps,
        checkpoint_step=restarts.checkpoint_step(),
        loss=steps[-1]["loss"] if steps else None,
        seconds_per_step=seconds,
        seconds_left=(max_steps - step) * seconds if is_running and max_steps and seconds else None,
        attempts=[vars(attempt) | {"nodes": list(attempt.nodes)} for attempt in attempts],
        goodput=restarts.goodput(),
        slow=slow_ranks(beats.ranks) if beats and is_running else [],
        silent=[seen.describe(now) for seen in beats.ranks if now - seen.published > 2 * SILENT]
        if beats and is_running
        else [],
    )


def _state(restarts: Restarts, attempts, beats, max_steps: int | None, now: float) -> tuple[str, str]:
    outcome, last = restarts.outcome(), attempts[-1] if attempts else None
    if max_steps is not None and restarts.is_complete(max_steps):
        return "complete", f"at step {outcome['step']}"
    if beats and beats.is_fresh(now) and outcome is None and (last is None or last.ended is None):
        return "running", ("asked to stop" if restarts.stop_requested else "")
    if last is not None and last.ended is not None:
        return {"complete": "complete", "stop": "stopped", "again": "not running"}[last.next], last.reason or ""
    if outcome is not None:
        return "not running", f"asked to stop ({outcome['signal'] or 'another rank was'}), saved step {outcome['step']}"
    if last is None and beats is None:
        return "not started", ""
    since = now - (beats.written if beats else last.started)
    if beats is None and since <= STARTING:
        return "running", f"attempt {last.attempt} starts"
    return "not running", f"no heartbeat for {since:.0f} s and no word of an end: killed, or still starting again"


def _beats(folder: Path, attempts: Sequence[Attempt]) -> heartbeats.Heartbeats | None:
    """What the ranks of the last attempt said; None where the file is still that of the one before."""
    beats = heartbeats.read(folder)
    return None if beats and attempts and beats.written < attempts[-1].started else beats


def _config(folder: Path):
    """What the run was last sent or started with; None where there is neither."""
    sent = sorted((folder / JOBS_FOLDER).glob(f"*/{config_yaml.CONFIG_FILE}"), key=lambda path: path.stat().st_mtime)
    for path in [folder / config_yaml.CONFIG_FILE, *reversed(sent)]:
        if path.is_file():
            return config_yaml.load(path)
    return None


def _attempt_line(attempt: dict[str, Any]) -> str:
    end = "no end recorded" if attempt["ended"] is None else f"to step {attempt['last_step']}: {attempt['reason']}"
    where = f" job {attempt['job']}" if attempt["job"] else ""
    return (
        f"attempt {attempt['attempt']}{where} on {', '.join(attempt['nodes'])}, from step {attempt['first_step']} {end}"
    )
