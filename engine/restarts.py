"""The life of a run over its restarts: restarts.jsonl, what is done after an end, and the goodput. Imports no torch.

restarts.jsonl holds two kinds of JSON objects, one a line:

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
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..parallel.reading import read_json
from .checkpoints import CheckpointFolder
from .run_files import METRICS_FILE, OUTCOME_FILE, RESTARTS_FILE, STOP_FILE

SAVED_NOT_FINISHED = 75
"""Exit status of a rank that was asked to stop and saved: EX_TEMPFAIL of sysexits.h, try again later."""
MISTAKE = 2
"""Exit status for what the user gave: the same command would say the same again."""
SAME_STEP = 3
"""Attempts that fail in a row without a new checkpoint make a crash loop."""

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


class Restarts:
    """The bookkeeping of one run folder."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.path = self.folder / RESTARTS_FILE

    def attempts(self) -> list[Attempt]:
        """All so far, in order. What a node that failed while it wrote left of a line is passed over."""
        if not self.path.is_file():
            return []
        found: dict[int, Attempt] = {}
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                record = json.loads(line)
                number = record["attempt"]
                found[number] = _started(record) if record["event"] == "start" else _ended(found[number], record)
        return list(found.values())

    def begin(self, *, job: str, nodes: Sequence[str], max_steps: int, budget: int) -> int | str:
        """Records a start and returns its number; or a word or sentence why there is none to make.

        "complete" where the run has all its steps, else a sentence that says why it must not be restarted.
        """
        if self.is_complete(max_steps):
            return "complete"
        attempts, step = self.attempts(), self.checkpoint_step()
        if self.stop_requested:
            return f"stopped on request; contentv launch again goes on from step {step}"
        if refusal := exhausted(attempts, step, budget):
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
        if self.is_complete(max_steps):
            following, reason = "complete", f"complete at step {step}"
        elif self.stop_requested:
            following, reason = "stop", f"stopped on request; the last checkpoint is that of step {step}"
        elif status == SAVED_NOT_FINISHED:
            following, reason = "again", f"asked to stop, saved step {step}"
        elif status == MISTAKE:
            following, reason = "stop", reason or "what was given is refused (exit status 2): see the ranks' logs"
        else:
            ended = [*self.attempts()[:-1], self._failed_now(status, step)]
            refusal = exhausted(ended, step, budget)
            reason = reason or f"exit status {status}"
            following, reason = ("stop", f"{reason}; {refusal}") if refusal else ("again", reason)
        self._append(
            event="end", attempt=attempt, status=status, step=step, reason=reason, next=following, bad_nodes=[]
        )
        return following, reason

    def end_for_nodes(self, attempt: int, bad: Sequence[str], *, go_on: bool, budget: int) -> tuple[Next, str]:
        """The same where the node check found bad nodes and training did not begin; `go_on`: others may be tried."""
        reason, step = f"the node check found {', '.join(bad)} bad", self.checkpoint_step()
        spent = sum(each.failed or each.status is None for each in self.attempts())
        following: Next = "again" if go_on and spent <= budget and not self.stop_requested else "stop"
        self._append(
            event="end", attempt=attempt, status=1, step=step, reason=reason, next=following, bad_nodes=list(bad)
        )
        return following, reason

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

    def _failed_now(self, status: int, step: int) -> Attempt:
        return replace(self.attempts()[-1], status=status, last_step=step, ended=time.time())

    def _append(self, **record: object) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            # After a half line, on a line of its own.
            if file.tell() and not self.path.read_bytes().endswith(b"\n"):
                file.write("\n")
            file.write(json.dumps(record | {"time": round(time.time(), 3)}) + "\n")
            file.flush()
            os.fsync(file.fileno())


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
    last: list[Attempt] = []
    for attempt in reversed(attempts):
        # What was ended from outside says nothing of the run itself.
        if attempt.crashed and attempt.first_step == step:
            last.append(attempt)
        elif attempt.status is not None and not attempt.bad_nodes:
            break
    if len(last) >= SAME_STEP:
        return (
            f"crash loop: {len(last)} attempts in a row failed after step {step} without a new checkpoint; see the "
            "logs of the last one, change what fails, and launch again"
        )
    spent = sum(attempt.failed or attempt.status is None for attempt in attempts)
    if spent > budget:
        return f"the restart budget is spent: {spent} attempts failed and --max-restarts is {budget}"
    return None


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
