"""`contentv train RECIPE [--section.key value]...`: trains, or goes on from the run folder's last checkpoint.

Exit status: 0 the run is complete; 75 it was asked to stop (SIGTERM, SIGUSR1), saved, and is not finished; 2 a mistake
in what was given; 1 a loss or gradient was not finite, and whatever else went wrong. The same command is
`python -m contentv.launchers.train`, which srun and torchrun -m start, once a process.

With --dry-run --world N it trains nothing and rehearses one step of every kind of rank of such a world (dry_run.py).
"""

import os
import sys
from collections.abc import Sequence

from ..engine.signals import SAVED_NOT_FINISHED, StopSignals

COMPLETE = 0
NOT_FINITE = 1


def main(argv: Sequence[str]) -> int:
    """Train as the command line says; returns the exit status."""
    # First of all: importing torch takes seconds, and a stop signal meanwhile would kill the rank.
    signals = StopSignals.install()
    from .command_line import call

    try:
        return call(lambda given: run(given, signals), argv)
    finally:
        signals.restore()


def run(argv: Sequence[str], signals: StopSignals) -> int:
    from .command_line import DRY_RUN

    if DRY_RUN in argv:
        from . import dry_run

        return dry_run.run(argv)
    if argv[:1] in (["-h"], ["--help"]):
        return help_text()
    from ..engine.profile_tools import under_tool
    from ..parallel.world import announced_world
    from .command_line import parse_run, tell

    config = parse_run(argv, "contentv train")
    world = announced_world(os.environ)
    config.micro_batches(world.size if world else 1)
    config.profile.check(config.trainer.max_steps)
    if config.profile.wanted and config.profile.tool != "torch" and (world is None or world.rank == 0):
        tell(f"under {config.profile.tool}, once a rank:\n  {under_tool(config.profile, config.run.folder, argv)}")
    # After every check that needs no torch, so that a mistake is told at once.
    from ..engine.trainer import NonFiniteError, train
    from ..parallel.mesh import leave_world
    from ..parallel.watch import LOST, RankLostError

    try:
        outcome = train(config, signals)
    except NonFiniteError as error:
        print(f"error: {error}", file=sys.stderr)
        return NOT_FINITE
    except RankLostError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        # At once: taking groups down would wait for the rank that is gone.
        os._exit(LOST)
    finally:
        leave_world()
    return COMPLETE if outcome.complete else SAVED_NOT_FINISHED


def help_text() -> int:
    from .command_line import DRY_RUN, run_help

    print(f"{run_help('contentv train')}\n\n{DRY_RUN} --world N trains nothing and rehearses one step of every kind of "
          "rank of such a world, on this machine.")  # fmt: skip
    return COMPLETE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
