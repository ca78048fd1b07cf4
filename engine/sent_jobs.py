"""Which Slurm jobs were sent for a run: jobs.jsonl in its folder, one JSON object a line: job, script (a folder), time.

And how such a job is, as launchers/slurm_queue.py hears it. Imports no torch.
"""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

SENT_FILE = "jobs.jsonl"
SCRIPT_FILE = "job.sbatch"

GONE = "GONE"
"""A job that Slurm does not know any more."""

OVER = (GONE, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "PREEMPTED",
        "BOOT_FAIL", "REVOKED")  # fmt: skip
"""States that a job does not leave again."""


@dataclass(frozen=True, kw_only=True)
class QueuedJob:
    """A job as Slurm sees it."""

    job: str
    state: str
    """RUNNING, PENDING, COMPLETING ...; GONE: Slurm does not know it any more."""
    reason: str
    """Why it waits, in Slurm's word; or its nodes."""
    remaining: str
    """Time to its limit, as Slurm writes it."""

    @property
    def is_over(self) -> bool:
        return self.state in OVER


def sent_jobs(run: Path, since: float = 0.0) -> list[str]:
    """Numbers of the jobs sent after `since` (seconds since 1970), in that order; `17_2` for a task of an array."""
    path = run / SENT_FILE
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            record = json.loads(line)
            job, sent = str(record["job"]), record["time"]
            if sent >= since:
                found.append(job)
    return found
