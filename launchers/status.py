"""`contentv status RUN`: how a run goes: step, speed, jobs, restarts, goodput, and ranks that are slow or silent.

From the run folder alone, and squeue where it is: on a login node as well as beside the run. Exit status 0.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..engine.restarts import Restarts
from ..engine.run_status import run_status
from ..engine.sent_jobs import GONE, QueuedJob, sent_jobs
from . import slurm_queue
from .command_line import call, tell


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return call(run, argv)


def run(argv: Sequence[str]) -> int:
    options = parse(argv)
    folder = Path(options.run)
    jobs = queued_jobs(folder)
    status = run_status(folder, time.time(), jobs)
    if options.json:
        print(json.dumps(asdict(status)))
        return 0
    for line in status.lines():
        print(line)
    return 0


def queued_jobs(folder: Path) -> list[QueuedJob]:
    """Those of the last launch that Slurm knows. Where it does not answer, the folder still says most of it."""
    try:
        found = [slurm_queue.fate(job) for job in sent_jobs(folder, Restarts(folder).launched() or 0.0)]
    except ValueError as error:
        tell(f"warning: {error}")
        return []
    return [job for job in found if job.state != GONE]


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="contentv status", description=__doc__.split(": ", 1)[1])
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("--json", action="store_true", help="print one JSON value on stdout")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
