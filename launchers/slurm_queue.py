"""What Slurm is asked and told: sbatch, squeue, sacct, scancel, and their answers as values."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace

from ..engine.sent_jobs import GONE, QueuedJob

LIMIT = 60
"""Seconds that one of Slurm's commands may take; a busy controller answers late."""


def is_here() -> bool:
    return shutil.which("sbatch") is not None


def submit(script: str, *, dependency: str | None = None) -> str:
    """Sends a script; returns the job's number.

    Raises ValueError with Slurm's own words where it refuses.
    """
    options = ["--parsable"] + ([f"--dependency={dependency}"] if dependency else [])
    # What this process was started with in a job of its own would be taken for the new job's.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
    environment |= {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    done = _run(["sbatch", *options, script], environment)
    if done.returncode:
        raise ValueError(f"Slurm refused the job: {_one_line(done.stderr)}; correct the option it names ({script})")
    return done.stdout.strip().partition(";")[0]


def look_up(job: str) -> QueuedJob:
    """The job as squeue sees it now; GONE where it does not know it, or where there is no Slurm.

    Raises ValueError where squeue fails: nothing is known then, least of all that the job is gone.
    """
    gone = QueuedJob(job=job, state=GONE, reason="", remaining="")
    if not job or not is_here():
        return gone
    done = _run(["squeue", "--noheader", "--states=all", "--array", f"--jobs={job}", "--format=%i|%T|%R|%L"])
    if done.returncode:
        if "Invalid job id" in done.stderr:
            return gone
        raise ValueError(f"squeue does not say how job {job} is: {_one_line(done.stderr)}; try again later")
    found = [parse_squeue(line) for line in done.stdout.splitlines()]
    # Of an array that waits, the line may be of all its tasks: what is cancelled later is the one that was asked for.
    return replace(next((each for each in found if each.job == job), found[0]), job=job) if found else gone


def fate(job: str) -> QueuedJob:
    """The same, and of a job that squeue has forgotten how it ended, where the cluster keeps accounts; else GONE.

    Raises ValueError as `look_up` does.
    """
    found = look_up(job)
    if found.state != GONE or not shutil.which("sacct"):
        return found
    done = _run(["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job}", "--format=State"])
    # Without accounts it fails; `CANCELLED by 1000` says who it was.
    states = done.stdout.split("\n") if done.returncode == 0 else []
    ended = next((state.split()[0].rstrip("+") for state in reversed(states) if state.strip()), GONE)
    return replace(found, state=ended)


def seconds_of(limit: str) -> int | None:
    """`1-12`, `8:00:00` or `20` (minutes) in seconds; None where it is no limit, or not written as sbatch takes it."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", limit)
    if match is None:
        return None
    days, *rest = (int(part) if part else 0 for part in match.groups())
    # A single number is minutes, two are minutes and seconds; after days they begin with hours.
    hours, minutes, seconds = rest if match[1] or match[4] else (0, rest[0], rest[1])
    return (days * 24 + hours) * 3600 + minutes * 60 + seconds or None


def parse_squeue(line: str) -> QueuedJob:
    """`17_2|PENDING|(Priority)|1:00:00` as a QueuedJob."""
    match = re.fullmatch(r"([^|]*)\|([^|]*)\|(.*)\|([^|]*)", line.strip())
    if match is None:
        raise RuntimeError(f"squeue said {line!r}, which is not number|state|reason|time")
    return QueuedJob(job=match[1], state=match[2], reason=match[3].strip("()"), remaining=match[4])


def ask_to_stop(job: str) -> None:
    """USR1 to the job's script, which passes it on to the ranks. Raises ValueError with Slurm's words."""
    _checked(["scancel", "--batch", "--signal=USR1", job], f"job {job} could not be signalled")


def cancel(job: str) -> None:
    _checked(["scancel", job], f"job {job} could not be cancelled")


def _checked(command: Sequence[str], what: str) -> None:
    done = _run(command)
    if done.returncode:
        raise ValueError(f"{what}: {_one_line(done.stderr)}")


def _run(command: Sequence[str], environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=environment)
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"{command[0]} did not answer within {LIMIT} s: the controller is busy or down; try again later"
        ) from None


def _one_line(text: str) -> str:
    return " ".join(text.split())
