"""The bookkeeping steps of a job's script (launchers/slurm_script.py): begin an attempt, end it, judge the nodes.

    begin RUN CONFIG --job N --nodes NAME...     prints the attempt's number, or "complete"
    end RUN CONFIG --attempt N --status N ...    prints complete, again or stop
    judge RUN --attempt N ...                    prints the bad nodes, with commas; nothing where all are good; with
                                                 exit status 3 why the check, which reached its limit, says nothing
    leave RUN --attempt N --bad-nodes ...        ends an attempt for their sake; prints again or stop

Why, they say on stderr, which is the job's log. Exit status 1: the run must not be started again. Imports no torch.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..engine import node_verdict, rank_logs
from ..engine.config_yaml import load
from ..engine.node_floor import Floor
from ..engine.restarts import MISTAKE, SAVED_NOT_FINISHED, Restarts
from .command_line import FAILURE, call, tell

UNENDED = 3
"""Exit status of `judge` for a check that reached its limit and blames no node."""


def main(argv: Sequence[str]) -> int:
    """Runs one step; returns its exit status."""
    return call(run, argv)


def run(argv: Sequence[str]) -> int:
    options = parse(argv)
    return {"begin": begin, "end": end, "judge": judge, "leave": leave}[options.step](options)


def begin(options: argparse.Namespace) -> int:
    answer = Restarts(options.run).begin(
        job=options.job,
        nodes=options.nodes,
        max_steps=load(options.config).trainer.max_steps,
        budget=options.max_restarts,
    )
    if isinstance(answer, str) and answer != "complete":
        tell(f"error: {options.run}: {answer}")
        return FAILURE
    nodes = ", ".join(options.nodes)
    tell(f"{options.run}: " + ("is complete already" if answer == "complete" else f"attempt {answer} on {nodes}"))
    print(answer)
    return 0


def end(options: argparse.Namespace) -> int:
    status, logs = options.status, Path(options.logs)
    codes = rank_logs.exit_codes(logs)
    failed = any(code < 128 and code != SAVED_NOT_FINISHED for code in codes)
    if MISTAKE in codes:
        status = MISTAKE
    elif status > 128 and options.asked and not failed:
        # The signal itself ended it before it could save, for example while it was still importing torch: no failure.
        status = SAVED_NOT_FINISHED
    following, reason = Restarts(options.run).end(
        options.attempt,
        status=status,
        reason=options.reason or rank_logs.what_failed(logs),
        max_steps=load(options.config).trainer.max_steps,
        budget=options.max_restarts,
    )
    return tell_end(options, following, reason)


def leave(options: argparse.Namespace) -> int:
    following, reason = Restarts(options.run).end_for_nodes(
        options.attempt, options.bad_nodes.split(","), go_on=options.then == "exclude", budget=options.max_restarts
    )
    return tell_end(options, following, reason)


def tell_end(options: argparse.Namespace, following: str, reason: str) -> int:
    # First, since the job's log may lie on a full disk: the script must hear it all the same.
    print(following, flush=True)
    tell(f"{options.run}: attempt {options.attempt} ended: {reason}; next: {following}")
    return 0


def judge(options: argparse.Namespace) -> int:
    # By the script's own clock: what srun says of a limit differs between versions of Slurm.
    is_late = options.seconds >= 60 * options.limit
    verdict = node_verdict.judge(
        Path(options.run),
        Path(options.logs),
        attempt=options.attempt,
        job=options.job,
        asked=bool(options.asked),
        floor=Floor(share=options.floor, excludes=options.below_floor == "exclude"),
        unended=node_verdict.Unended(
            minutes=options.limit, nodes=tuple(options.nodes), ranks_per_node=options.ranks_per_node
        )
        if is_late
        else None,
    )
    print(verdict.unended or ",".join(verdict.bad), flush=True)
    for line in verdict.lines:
        tell(line)
    return UNENDED if verdict.unended else 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m contentv.launchers.slurm_job", description=__doc__)
    steps = parser.add_subparsers(dest="step", required=True)
    made = {name: steps.add_parser(name) for name in ("begin", "end", "judge", "leave")}
    for step in made.values():
        step.add_argument("run")
    for name in ("begin", "end"):
        made[name].add_argument("config")
    for name in ("begin", "end", "leave"):
        made[name].add_argument("--max-restarts", type=int, required=True)
    for name in ("end", "judge", "leave"):
        made[name].add_argument("--attempt", type=int, required=True)
    for name in ("end", "judge"):
        made[name].add_argument("--logs", required=True)
        made[name].add_argument("--asked", default="", help="not empty: it was asked to stop meanwhile")
    for name in ("begin", "judge"):
        made[name].add_argument("--job", required=True)
    for name in ("begin", "judge"):
        made[name].add_argument("--nodes", nargs="+", required=True)
    made["judge"].add_argument("--ranks-per-node", type=int, required=True)
    made["judge"].add_argument("--seconds", type=int, required=True, help="that the check took")
    made["judge"].add_argument("--limit", type=int, required=True, help="minutes that it was given")
    made["judge"].add_argument("--floor", type=float, required=True)
    made["judge"].add_argument("--below-floor", choices=("warn", "exclude"), required=True)
    made["end"].add_argument("--reason", default="", help="why, where the ranks' logs do not say it")
    made["end"].add_argument("--status", type=int, required=True)
    made["leave"].add_argument("--bad-nodes", required=True)
    made["leave"].add_argument("--then", choices=("exclude", "stop"), required=True)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
