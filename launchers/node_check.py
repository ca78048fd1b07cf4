"""`python -m contentv.launchers.node_check FOLDER`, one process a rank: what its device and node do, into FOLDER.

The first step of a job's script; launchers/slurm_job.py judges what all ranks leave. Exit status 75: it was asked to
stop meanwhile; 1: this rank's device does not work.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..engine.signals import StopSignals

FAILED = 1
SAVED_NOT_FINISHED = 75


def main(argv: Sequence[str]) -> int:
    """Measures; returns the exit status."""
    # First of all, as in train: importing torch takes seconds.
    signals = StopSignals.install()
    from .command_line import call

    try:
        return call(lambda given: run(given, signals), argv)
    finally:
        signals.restore()


def run(argv: Sequence[str], signals: StopSignals) -> int:
    if len(argv) != 1 or argv[0].startswith("-"):
        raise ValueError("give one folder: python -m contentv.launchers.node_check FOLDER, one process a rank")
    from ..engine.node_speed import measure
    from ..parallel.mesh import leave_world
    from ..parallel.world import announced_world

    world = announced_world(os.environ)
    ranks_here = int(os.environ.get("SLURM_NTASKS_PER_NODE") or os.environ.get("LOCAL_WORLD_SIZE") or 1)
    try:
        measure(Path(argv[0]), rank=world.rank if world else 0, ranks_here=ranks_here,
                node=os.environ.get("SLURMD_NODENAME"))  # fmt: skip
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return FAILED
    finally:
        leave_world()
    return SAVED_NOT_FINISHED if signals.stop_requested else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
