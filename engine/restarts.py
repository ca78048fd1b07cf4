"""The life of a run over its restarts: restarts.jsonl, what is done after an end, and the goodput. Imports no torch.

restarts.jsonl holds three kinds of JSON objects, one a line:

  launch event "launch", time: `contentv launch` was here; crash loops and budgets are counted from it on
  start  event "start", attempt (counted from 1), job (Slurm's number; "" outside Slurm), nodes (their names), step (of
         the checkpoint it goes on from; 0: none), time (seconds since 1970)
  end    event "end", attempt, status (exit status of srun), step (of the last checkpoint now), reason (a sentence),
         next ("complete", "again" or "stop": what the job's script does), bad_nodes (names, where the node check found
         some), time

An attempt without an end was ended from outside: its node failed, or Slurm preempted or cancelled the job. If its ranks
had saved before, the next start writes the end down for it.
"""

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..parallel.reading import read_json
from . import json_lines
from .checkpoints import CheckpointFolder
from .run_files import METRICS_FILE, OUTCOME_FILE, RESTARTS_FILE, STOP_FILE
from .signals import SAVED_NOT_FINISHED

MISTAKE = 2
"""Exit status for what the user gave: the same command would say the same again."""
SAME_STEP = 3
"""Attempts in a row without a new checkpoint after which none is made: a crash loop, or too little time to save."""

Next = Literal["complete", "again", "stop"]


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of all ranks, and its end; the end's fields are None while it runs, or if it was ended from outside."""

    attempt: int
    job: str
    nodes: tuple[str, ...]
    first_step: int
    started: float
    status: int | None = None
    last_step: int | None = None
    reason: str | None = None
    next: Next | None = None
    bad_nodes: tuple[str, ...] = ()
    ended: float | None = None

    @property
    def failed(self) -> bool:
        """Ended by itself with neither completion nor a save that was asked for."""
        return self.status not in (None, 0, SAVED_NOT_FINISHED)

    @property
    def crashed(self) -> bool:
        """Failed, and not for its nodes' sake: others would not help."""
        return self.failed and not self.bad_nodes

    @property
    def in_vain(self) -> bool:
        """Asked to stop, and no further than where it began."""
        return self.status == SAVED_NOT_FINISHED and self.last_step == self.first_step


class Restarts:
    """The bookkeeping of one run folder."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.path = self.folder / RESTARTS_FILE

    def attempts(self) -> list[Attempt]:
        """All so far, in order."""
        return self._read()[0]

    def of_this_launch(self) -> list[Attempt]:
        """Those since the last `contentv launch`: who launches again has changed what failed."""
        attempts, earlier = self._read()
        return attempts[earlier:]

    def launched(self) -> float | None:
        """When `contentv launch` was here last, in seconds since 1970; None: never."""
        times = [record.get("time") for record in json_lines.read(self.path) if record.get("event") == "launch"]
        return next((time for time in reversed(times) if isinstance(time, (int, float))), None)

    def launch(self) -> None:
        """Records that a job is about to be sent, and forgets a request to stop. Makes the folder if need be."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / STOP_FILE).unlink(missing_ok=True)
        self._append(event="launch")

    def begin(self, *, job: str, nodes: Sequence[str], max_steps: int, budget: int) -> int | str:
        """Records a start and returns its number; or a word or sentence why there is none to make.

        "complete" where the run has all its steps, else a sentence that says why it must not be restarted.
        """
        if self.is_complete(max_steps):
            return "complete"
        attempts, step = self.attempts(), self.checkpoint_step()
        if self.stop_requested:
            return f"stopped on request; contentv launch again goes on from step {step}"
        if refusal := exhausted(self.of_this_launch(), step, budget):
            return refusal
        self._close(attempts, step)
        # What an earlier attempt left there must not be taken for this one's.
        (self.folder / OUTCOME_FILE).unlink(missing_ok=True)
        number = attempts[-1].attempt + 1 if attempts else 1
        self._append(event="start", attempt=number, job=job, nodes=list(nodes), step=step)
        return number

    def end(self, attempt: int, *, status: int, reason: str, max_steps: int, budget: int) -> tuple[Next, str]:
        """Records the end of an attempt; returns what comes next and the sentence that says why."""
        step, outcome = self.checkpoint_step(), self.outcome()
        if outcome is not None:
            # Under srun -K1 the first rank to leave ends the others: the statuses say less than what rank 0 wrote.
            status = 0 if outcome["complete"] else SAVED_NOT_FINISHED
        following: Next
        if self.is_complete(max_steps):
            following, reason = "complete", f"complete at step {step}"
        elif self.stop_requested:
            following, reason = "stop", f"stopped on request; the last checkpoint is that of step {step}"
        elif status == MISTAKE:
            following, reason = "stop", reason or "what was given is refused (exit status 2): see the ranks' logs"
        else:
            if status == SAVED_NOT_FINISHED and outcome is not None:
                reason = f"asked to stop, saved step {step}"
            elif status == SAVED_NOT_FINISHED:
                reason = f"asked to stop before it could save; step {step} stands"
            following, reason = self._again_or_stop(attempt, status, step, reason or f"exit status {status}", budget)
        return following, self._write_end(attempt, status, step, reason, following)

    def end_for_nodes(self, attempt: int, bad: Sequence[str], *, go_on: bool, budget: int) -> tuple[Next, str]:
        """The same where the node check found bad nodes and training did not begin; `go_on`: others may be tried."""
        reason, step = f"the node check found {', '.join(bad)} bad", self.checkpoint_step()
        spent = sum(each.failed or each.status is None for each in self.of_this_launch())
        following: Next = "again" if go_on and spent <= budget and not self.stop_requested else "stop"
        return following, self._write_end(attempt, 1, step, reason, following, bad)

    def outcome(self) -> dict | None:
        """outcome.json; None while a run is under way, or where it died (or something else lies there)."""
        with contextlib.suppress(OSError, ValueError):
            content = read_json(self.folder / OUTCOME_FILE)
            if isinstance(content, dict) and {"step", "complete", "signal"} <= content.keys():
                return content
        return None

    def is_complete(self, max_steps: int) -> bool:
        outcome = self.outcome()
        return outcome is not None and outcome["complete"] and outcome["step"] >= max_steps

    @property
    def stop_requested(self) -> bool:
        """`contentv stop` was here; the next `contentv launch` forgets it."""
        return (self.folder / STOP_FILE).exists()

    def checkpoint_step(self) -> int:
        """Of the last whole checkpoint; 0 where there is none."""
        return max(CheckpointFolder(self.folder).steps(), default=0)

    def goodput(self) -> dict[str, float | int] | None:
        """kept_seconds (of the steps that count), wall_seconds (since the first start, waiting in the queue between
        attempts included), goodput (the one by the other), attempts; None before the first start."""
        attempts = self.attempts()
        if not attempts:
            return None
        until = attempts[-1].ended or self._last_sign() or time.time()
        wall = max(until - attempts[0].started, 1e-9)
        kept = sum(line["seconds"] for line in step_lines(self.folder / METRICS_FILE))
        return {
            "kept_seconds": round(kept, 3),
            "wall_seconds": round(wall, 3),
            "goodput": round(kept / wall, 4),
            "attempts": len(attempts),
        }

    def _close(self, attempts: Sequence[Attempt], step: int) -> None:
        """The end of an attempt whose ranks saved in time, but whose job was ended before it could write that down."""
        if attempts and attempts[-1].ended is None and self.outcome() is not None:
            told = {"status": SAVED_NOT_FINISHED, "step": step, "next": "again", "bad_nodes": []}
            reason = f"asked to stop, saved step {step}; its job was ended before it could say so"
            self._append(event="end", attempt=attempts[-1].attempt, reason=reason, **told)

    def _last_sign(self) -> float | None:
        path = self.folder / METRICS_FILE
        return path.stat().st_mtime if path.is_file() else None

    def _again_or_stop(self, attempt: int, status: int, step: int, reason: str, budget: int) -> tuple[Next, str]:
        ended = [
            replace(each, status=status, last_step=step) if each.attempt == attempt else each
            for each in self.of_this_launch()
        ]
        refusal = exhausted(ended, step, budget)
        return ("stop", f"{reason}; {refusal}") if refusal else ("again", reason)

    def _write_end(
        self, attempt: int, status: int, step: int, reason: str, following: Next, bad_nodes: Sequence[str] = ()
    ) -> str:
        """Writes the end down; returns the reason. On a full disk the job must still hear what follows."""
        end = {"status": status, "step": step, "reason": reason, "next": following, "bad_nodes": list(bad_nodes)}
        try:
            self._append(event="end", attempt=attempt, **end)
        except OSError as error:
            return f"{reason}; this could not be written into {self.path}: {error.strerror}"
        return reason

    def _read(self) -> tuple[list[Attempt], int]:
        """All attempts, and how many there were before the last launch; what is no whole record is passed over."""
        found: dict[int, Attempt] = {}
        earlier = 0
        for record in json_lines.read(self.path):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                if record["event"] == "launch":
                    earlier = len(found)
                    continue
                number = record["attempt"]
                found[number] = _started(record) if record["event"] == "start" else _ended(found[number], record)
        return list(found.values()), earlier

    def _append(self, **record: object) -> None:
        json_lines.append(self.path, record | {"time": round(time.time(), 3)})


def _started(record: dict) -> Attempt:
    return Attempt(
        attempt=record["attempt"],
        job=record["job"],
        nodes=tuple(record["nodes"]),
        first_step=record["step"],
        started=record["time"],
    )


def _ended(attempt: Attempt, record: dict) -> Attempt:
    return replace(
        attempt,
        status=record["status"],
        last_step=record["step"],
        reason=record["reason"],
        next=record["next"],
        bad_nodes=tuple(record["bad_nodes"]),
        ended=record["time"],
    )


def exhausted(attempts: Sequence[Attempt], step: int, budget: int) -> str | None:
    """Why a run whose last checkpoint is that of `step` must not be started again; None if it may.

    Time limits and preemptions that were answered by a save are no failures: they cost nothing of the budget.
    """
    crashed = _in_a_row(attempts, step, lambda attempt: attempt.crashed)
    if crashed >= SAME_STEP:
        return (
            f"crash loop: {crashed} attempts in a row failed after step {step} without a new checkpoint; see the "
            "logs of the last one, change what fails, and launch again"
        )
    in_vain = _in_a_row(attempts, step, lambda attempt: attempt.in_vain)
    if in_vain >= SAME_STEP:
        return (
            f"no time to get anywhere: {in_vain} attempts in a row were asked to stop before a checkpoint after step "
            f"{step}; give a larger --time, or a smaller --save-ahead, and launch again"
        )
    spent = sum(attempt.failed or attempt.status is None for attempt in attempts)
    if spent > budget:
        return f"the restart budget is spent: {spent} attempts failed and --max-restarts is {budget}"
    return None


def _in_a_row(attempts: Sequence[Attempt], step: int, so: Callable[[Attempt], bool]) -> int:
    """How many of the last attempts ended so, no further than `step`."""
    count = 0
    for attempt in reversed(attempts):
        # What was ended from outside says nothing of the run itself.
        if so(attempt) and attempt.first_step == step:
            count += 1
        elif attempt.status is not None and not attempt.bad_nodes:
            break
    return count


def step_lines(path: Path) -> list[dict]:
    """The training lines of a metrics.jsonl (engine/metrics.py), what is none left out; empty without a file."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_bytes().splitlines():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and {"step", "loss", "seconds"} <= record.keys():
                found.append(record)
    return found
