"""How a run goes, from the files of its folder. Imports no torch: it answers on a login node."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ..parallel.sighting import SILENT, slow_ranks
from . import config_yaml, heartbeats
from .readable import duration, rounded
from .restarts import Attempt, Restarts, step_lines
from .run_files import JOBS_FOLDER, LOGS_FOLDER, METRICS_FILE
from .sent_jobs import OVER, SENT_FILE, QueuedJob

STARTING = 1800
"""Seconds that an attempt may take to its first heartbeat: the node check, imports, and a checkpoint to load."""
LATEST = 50
"""Steps whose median tells the speed."""
SHOWN = 5
"""Attempts, and ranks of a kind, that a person is shown; --json has all."""


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """What `contentv status` shows; with --json under the same names. None and empty where nothing is known."""

    folder: str
    state: str
    """complete, running, pending (its job waits), starting (its job has just begun), stopped, failed (its job ended
    before an attempt began), not running, or not started."""
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
    jobs: list[dict[str, Any]]
    """Of the last launch, as Slurm sees them: job, state, reason, remaining."""

    def lines(self) -> list[str]:
        """For a person."""
        of = f" of {self.max_steps:,}" if self.max_steps else ""
        shown = [f"{self.folder}: {self.state}{f', {self.why}' if self.why else ''}"]
        shown.append(f"step {self.step:,}{of}, last checkpoint {self.checkpoint_step:,}")
        if self.seconds_per_step is not None:
            loss = f"{self.loss:.4g}" if isinstance(self.loss, float) else self.loss
            shown[-1] += f", loss {loss}, {rounded(self.seconds_per_step)} s a step"
        if self.seconds_left:
            shown[-1] += f", {duration(self.seconds_left)} left"
        if self.goodput:
            attempts = self.goodput["attempts"]
            shown.append(f"goodput {self.goodput['goodput']:.1%} over {attempts} attempt{'s' * (attempts != 1)}: steps "
                         f"that count took {duration(self.goodput['kept_seconds'])} of "
                         f"{duration(self.goodput['wall_seconds'])}")  # fmt: skip
        if len(self.attempts) > SHOWN:
            shown.append(f"the last {SHOWN} of {len(self.attempts)} attempts:")
        shown += [_attempt_line(attempt) for attempt in self.attempts[-SHOWN:]]
        return [*shown, *_some("slow", self.slow), *_some("silent", self.silent), *map(_job_line, self.jobs)]


def run_status(folder: Path, now: float, jobs: Sequence[QueuedJob] = ()) -> RunStatus:
    """`jobs`: what Slurm says of those of the last launch, in the order sent. ValueError for a folder without a run."""
    restarts = Restarts(folder)
    attempts, steps, config = restarts.attempts(), step_lines(folder / METRICS_FILE), _config(folder)
    beats = _beats(folder, attempts)
    if points := [path.parent.name for path in sorted(folder.glob(f"*/{SENT_FILE}"))]:
        raise ValueError(f"{folder} holds a sweep: name the folder of one of its points, {', '.join(points)}")
    if config is None and not attempts and not steps and not (folder / SENT_FILE).is_file():
        raise ValueError(f"{folder} holds no run: name the folder of --run.folder, for example runs/quickstart")
    max_steps = config.trainer.max_steps if config else None
    seconds = median(line["seconds"] for line in steps[-LATEST:]) if steps else None
    state, why = _state(restarts, beats, max_steps, now, jobs)
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
        jobs=[vars(job) for job in jobs],
    )


def _state(restarts: Restarts, beats, max_steps: int | None, now: float, jobs: Sequence[QueuedJob]) -> tuple[str, str]:
    outcome, attempts = restarts.outcome(), restarts.attempts()
    last = attempts[-1] if attempts else None
    if max_steps is not None and restarts.is_complete(max_steps):
        return "complete", f"at step {outcome['step']}"
    if beats and beats.is_fresh(now) and outcome is None and (last is None or last.ended is None):
        return "running", ("asked to stop" if restarts.stop_requested else "")
    if coming := _coming(restarts, jobs):
        return coming
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


def _coming(restarts: Restarts, jobs: Sequence[QueuedJob]) -> tuple[str, str] | None:
    """Of a run whose next attempt has not begun, its last one told as what was before; None where none is to come."""
    attempts, is_new = restarts.attempts(), restarts.launched() is not None and not restarts.of_this_launch()
    last = attempts[-1] if attempts else None
    before = f"; attempt {last.attempt} before it: {last.reason or 'no end recorded'}" if last else ""
    live = next((job for job in jobs if not job.is_over), None)
    if live is not None and live.state not in ("RUNNING", "COMPLETING"):
        return "pending", f"job {live.job} is {live.state}: {live.reason or 'no reason given'}{before}"
    if live is not None and live.state == "RUNNING" and (is_new or last is None or last.next == "again"):
        return "starting", f"job {live.job} is RUNNING on {live.reason or 'no node named'}{before}"
    if not is_new:
        return None
    if jobs:
        log = restarts.folder / LOGS_FOLDER / f"job-{jobs[-1].job}.log"
        return "failed", f"job {jobs[-1].job} is {jobs[-1].state} and began no attempt, see {log}{before}"
    return ("not started", f"launched again{before}") if last else None


def _beats(folder: Path, attempts: Sequence[Attempt]) -> heartbeats.Heartbeats | None:
    """What the ranks of the last attempt said; None where the file is still that of the one before."""
    beats = heartbeats.read(folder)
    return None if beats and attempts and beats.written < attempts[-1].started else beats


def _config(folder: Path):
    """What the run was last sent or started with, whichever is later; None where there is neither."""
    found = [folder / config_yaml.CONFIG_FILE, *(folder / JOBS_FOLDER).glob(f"*/{config_yaml.CONFIG_FILE}")]
    found = [path for path in found if path.is_file()]
    return config_yaml.load(max(found, key=lambda path: path.stat().st_mtime)) if found else None


def _attempt_line(attempt: dict[str, Any]) -> str:
    end = "no end recorded" if attempt["ended"] is None else f"to step {attempt['last_step']}: {attempt['reason']}"
    where = f" job {attempt['job']}" if attempt["job"] else ""
    return f"attempt {attempt['attempt']}{where} on {_nodes(attempt['nodes'])}, from step {attempt['first_step']} {end}"


def _nodes(names: Sequence[str]) -> str:
    """All of a few; of many the first, the last and how many: `n001 to n032 (32 nodes)`."""
    return ", ".join(names) if len(names) <= 4 else f"{names[0]} to {names[-1]} ({len(names)} nodes)"


def _some(kind: str, lines: Sequence[str]) -> list[str]:
    """The first ones; how many more there are."""
    more = [f"{kind}: and {len(lines) - SHOWN} more; --json has all"] if len(lines) > SHOWN else []
    return [f"{kind}: {line}" for line in lines[:SHOWN]] + more


def _job_line(job: dict[str, Any]) -> str:
    left = f", {job['remaining']} left" if job["remaining"] and job["state"] not in OVER else ""
    return f"job {job['job']}: {job['state']}{', ' if job['reason'] else ''}{job['reason']}{left}"
