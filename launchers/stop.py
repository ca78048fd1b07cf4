"""`contentv stop RUN`: asks a run to save and end, waits for it, and says what happened.

A Slurm job is signalled by scancel and not requeued; what still waits in the queue is cancelled. A run of this machine
gets the signal itself. Exit status 0: it has ended, or none was running; 1: it has not within --wait seconds.
"""

import argparse
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from ..engine import heartbeats
from ..engine.restarts import Restarts
from ..engine.run_files import STOP_FILE
from ..engine.run_status import run_status
from ..engine.sent_jobs import QueuedJob, sent_jobs
from ..parallel.durable import write_text
from . import slurm_queue
from .command_line import FAILURE, call, tell

LOOK = 1.0
"""Seconds between two looks at what was asked to end."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return call(run, argv)


def run(argv: Sequence[str]) -> int:
    options = parse(argv)
    folder = Path(options.run)
    run_status(folder, time.time())  # refuses what is no run
    queued = [job for number in sent_jobs(folder) if not (job := slurm_queue.look_up(number)).is_over]
    running = stop_jobs(folder, queued) if queued else stop_here(folder)
    if not running and not queued:
        print(f"{folder}: nothing of it is running; its last checkpoint is that of step {step_of(folder)}")
        return 0
    left = wait_for(running, options.wait)
    if left:
        print(f"{folder}: {', '.join(left)} still running after {options.wait} s; contentv status {folder} says where")
        return FAILURE
    print(f"{folder}: ended, its last checkpoint is that of step {step_of(folder)}; the same launch goes on from there")
    return 0


def stop_jobs(folder: Path, queued: list[QueuedJob]) -> list[str]:
    """Signals what runs, cancels what waits; returns the numbers of those that will take a while to end."""
    # Before the signal: the job's script reads it when the ranks have saved, and does not requeue.
    write_text(folder / STOP_FILE, json.dumps({"time": time.time()}) + "\n")
    running = []
    # The last link of a chain first, so that none starts because the one before it has ended.
    for job in reversed(queued):
        if job.state == "RUNNING":
            slurm_queue.ask_to_stop(job.job)
            running.append(job.job)
            tell(f"job {job.job} was asked to save and end")
        elif job.state == "COMPLETING":
            running.append(job.job)
        else:
            slurm_queue.cancel(job.job)
            tell(f"job {job.job} was {job.state} and is cancelled")
    return running


def stop_here(folder: Path) -> list[str]:
    """Signals rank 0, if it is a process of this machine; its number. One rank is enough: all agree on every step."""
    beats = heartbeats.read(folder)
    if beats is None or not beats.is_fresh(time.time()):
        return []
    first = next(rank for rank in beats.ranks if rank.rank == 0)
    if first.host != socket.gethostname():
        raise ValueError(
            f"{folder} runs on {first.host} (process {first.process}) and no Slurm job of it is known: say contentv "
            "stop there"
        )
    # A number may be another process's by now.
    if not _is_ours(first.process, beats.written):
        return []
    os.kill(first.process, signal.SIGTERM)
    tell(f"process {first.process} was asked to save and end")
    return [f"process {first.process}"]


def _is_ours(process: int, written: float) -> bool:
    try:
        return psutil.Process(process).create_time() < written
    except psutil.NoSuchProcess:
        return False


def wait_for(running: list[str], limit: float) -> list[str]:
    """What still runs after `limit` seconds."""
    deadline = time.monotonic() + limit
    left = running
    while left := [each for each in left if _runs(each)]:
        if time.monotonic() > deadline:
            break
        time.sleep(LOOK)
    return left


def _runs(each: str) -> bool:
    if not each.startswith("process "):
        return not slurm_queue.look_up(each).is_over
    try:
        return psutil.Process(int(each.split()[1])).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def step_of(folder: Path) -> int:
    return Restarts(folder).checkpoint_step()


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="contentv stop", description=__doc__.split(": ", 1)[1])
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("--wait", type=float, default=600, metavar="SECONDS", help="for the save; default: 600")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
