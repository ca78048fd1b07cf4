"""`python -m contentv.launchers.node_check FOLDER`, one process a rank: what its device and node do, into FOLDER.

The first step of a job's script; launchers/slurm_job.py judges what all ranks leave. A rank whose device hangs leaves
its mark alone, and is known by it once the others have waited for it in vain. Exit status 75: it was asked to stop
meanwhile; 1: this rank's device does not work, or one that it waited for.
"""

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from ..engine.signals import SAVED_NOT_FINISHED, StopSignals

FAILED = 1


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
    from ..engine import node_verdict
    from ..parallel.world import announced_world

    folder, world = Path(argv[0]), announced_world(os.environ)
    node, rank = os.environ.get("SLURMD_NODENAME") or socket.gethostname(), world.rank if world else 0
    import torch  # noqa: F401  it takes seconds, which are no fault of the device

    node_verdict.mark(folder, node=node, rank=rank)
    try:
        # A device that is gone is met by the import already: the seam looks for it.
        from ..engine.node_speed import measure
        from ..parallel.mesh import leave_world

        try:
            measure(folder, node=node, rank=rank, ranks_here=int(os.environ.get("SLURM_NTASKS_PER_NODE") or 1))
        finally:
            leave_world()
    except (RuntimeError, ValueError, ImportError, OSError) as error:
        said = " ".join(str(error).split())[:300]
        # What fails after a rank has its figures fails among all: this node need not be the one at fault.
        if not signals.stop_requested and not node_verdict.has_figures(folder, rank):
            node_verdict.keep(folder, {"node": node, "rank": rank, "device": None, "error": said})
        print(f"error: {said}", file=sys.stderr, flush=True)
        return FAILED
    return SAVED_NOT_FINISHED if signals.stop_requested else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
