"""`contentv sweep RECIPE --grid KEY=VALUE,VALUE [--grid ...] --world N,N [options]`: a grid of short runs, measured.

Every point of the grid in every world is trained for a few steps, one after another, each by as many processes as its
world has; with --slurm each is handed to `contentv launch` instead. What the engine refuses is passed over, its reason
kept. The same command again goes on: a finished point is not run twice; one whose job has died in the queue is told as
failed, and the next command sends it again. In the --out folder: sweep.csv, sweep.json, and scaling.png (strong: the
same global batch in every world; weak: one that grows with it). Other options, such as --data.folder PATH, are those of
`contentv train`.
"""

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

from ..engine.grid import parse_grid
from ..engine.hardware import HARDWARE, Hardware, hardware_of
from ..engine.readable import rounded
from ..engine.restarts import Restarts
from ..engine.sent_jobs import sent_jobs
from ..engine.sweep import STRONG, WEAK, Point, Row, Sweep, note, prepare, status_of
from . import launch, slurm_queue

LOG_FILE = "log.txt"
TOLD = 400
"""Characters of a failed point's log in its reason."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 0 unless a point failed that the engine had not refused."""
    from .command_line import call

    return call(run, argv)


def run(argv: Sequence[str]) -> int:
    options, rest = parse(argv)
    hardware = hardware_of(options.hardware) if options.hardware else _hardware_here(options)
    sweep = asked(options, rest)
    points = sweep.points()
    if all(point.config is None for point in points):
        raise ValueError(f"no point of this grid is possible: {points[0].name}: {points[0].reason}")
    from ..engine.scaling import draw_curves, measure, write_tables
    from .command_line import tell

    start = _submit if options.slurm else _train
    sweep.folder.mkdir(parents=True, exist_ok=True)
    before = [status_of(point, measure) for point in points]
    rows = [planned(in_the_queue(row, measure), hardware) for row in before]
    for index, point in enumerate(points):
        place = f"{index + 1}/{len(points)}"
        # What has only now turned out to have failed is shown first: whether to try it again is for who reads that.
        if before[index].status in ("open", "failed"):
            tell(f"{place} {point.name}")
            start(point, options)
            seconds = rows[index].predicted_seconds
            rows[index] = replace(status_of(point, measure), predicted_seconds=seconds)
        tell(f"{place} {describe(rows[index])}")
        records = write_tables(rows, sweep.folder)
    curves = draw_curves(rows, sweep.folder)
    if options.json:
        print(json.dumps(records, allow_nan=False))
    else:
        print(curves or sweep.folder)
    return 1 if any(row.status == "failed" for row in rows) else 0


def asked(options: argparse.Namespace, rest: Sequence[str]) -> Sweep:
    """The sweep; ValueError for what is impossible in every point."""
    from .command_line import parse_run

    if options.steps < 1:
        raise ValueError(f"--steps is {options.steps}; it must be at least 1")
    try:
        worlds = tuple(dict.fromkeys(int(world) for world in options.world.split(",")))
    except ValueError:
        worlds = ()
    if not worlds or min(worlds) < 1:
        raise ValueError(f"--world is {options.world}; it must be numbers of processes, such as 1,2")
    base = parse_run([options.recipe, *rest], "contentv sweep")
    out = options.out or Path("runs") / f"sweep-{base.recipe}"
    return Sweep(
        base=base,
        grid=parse_grid(options.grid, base),
        worlds=worlds,
        scaling={"both": (STRONG, WEAK)}.get(options.scaling, (options.scaling,)),
        steps=options.steps,
        folder=out,
    )


def _hardware_here(options: argparse.Namespace) -> Hardware | None:
    """The processor where points are trained here and there is nothing else to train on; else somebody must say."""
    accelerated = options.slurm or any(map(shutil.which, ("nvidia-smi", "npu-smi")))
    return None if accelerated else hardware_of("cpu")


def planned(row: Row, hardware: Hardware | None) -> Row:
    """The row with what the planner says of its point."""
    from ..engine.report.plan import planned_of

    config = row.point.config
    said = planned_of(config, row.point.world, hardware) if config and hardware else None
    return replace(row, predicted_seconds=said.step_seconds if said else None)


def in_the_queue(row: Row, measure: Callable[[Path], dict[str, float | None]]) -> Row:
    """The row, of a point that was handed to Slurm with what the queue and the accounts say of its job."""
    if row.status != "running" or not slurm_queue.is_here():
        return row
    jobs = sent_jobs(row.point.folder)
    try:
        job = slurm_queue.fate(jobs[-1] if jobs else "")
    except ValueError as error:
        return replace(row, reason=str(error))
    if not job.is_over:
        return replace(row, reason=f"job {job.job} is {job.state}: {job.reason or 'no reason given'}")
    # Anew, and after Slurm was asked: it may have become complete in between.
    row = status_of(row.point, measure)
    if row.status != "running":
        return row
    attempts = Restarts(row.point.folder).of_this_launch()
    last = (attempts[-1].reason or "no end recorded") if attempts else "it began no attempt"
    note(row.point, "failed", f"job {job.job} is {job.state}: {last}" if jobs else "no job was sent")
    return status_of(row.point, measure)


def describe(row: Row) -> str:
    """One line about a point."""
    if row.measured:
        planned = f" (planned {rounded(row.predicted_seconds)})" if row.predicted_seconds else ""
        rate, seconds = (rounded(row.measured[name]) for name in ("tokens_per_second", "seconds"))
        return f"{row.point.name}: {seconds} s a step{planned}, {rate} tokens a second"
    return f"{row.point.name}: {row.status}{': ' if row.reason else ''}{row.reason}"


def _train(point: Point, options: argparse.Namespace) -> None:
    """Trains a point in processes of this machine; what an interrupted one left is begun anew."""
    shutil.rmtree(point.folder, ignore_errors=True)
    path = prepare(point)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(point.world)]
    # torchrun gives each process one thread unless told; so does a world of one here, or its point would stand apart.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    log = point.folder / LOG_FILE
    with log.open("wb") as file:
        status = _run([*command, "-m", f"{__package__}.train", str(path)], environment, file, options.limit)
    shutil.rmtree(point.folder / "checkpoints", ignore_errors=True)  # a sweep is for figures
    if status is None:
        note(point, "failed", f"took longer than --limit, {options.limit:g} s")
    elif status:
        _note_failure(point, log.read_text(errors="replace"))


def _run(command: list[str], environment: dict[str, str], log: IO[bytes], limit: float) -> int | None:
    """The exit status; None of what took too long. No process of it is left, whatever happens."""
    child = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        return child.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _note_failure(point: Point, log: str) -> None:
    """A refusal of the engine begins a line with `error: `; everything else is a failure."""
    refusals = [line for line in log.splitlines() if line.startswith("error: ")]
    if refusals:
        note(point, "refused", refusals[0].removeprefix("error: "))
    else:
        note(point, "failed", log[-TOLD:])


def _submit(point: Point, options: argparse.Namespace) -> None:
    """Hands a point to Slurm; the same command later gathers what it measured."""
    path = prepare(point)
    note(point, "running", "in the queue")  # before it is sent: what is killed meanwhile must not send it twice
    with contextlib.redirect_stdout(sys.stderr):  # the jobs' numbers: stdout is for the sweep's own answer
        status = launch.main(launch_line(point, path, options.devices_per_node) + shlex.split(options.launch))
    if status:
        note(point, "failed", f"contentv launch ended with {status}")


def launch_line(point: Point, path: Path, devices_per_node: int) -> list[str]:
    """The arguments of `contentv launch` for a point."""
    devices = min(point.world, devices_per_node)
    if point.world % devices:
        raise ValueError(f"--world {point.world} is no whole number of nodes of {devices_per_node} devices")
    return [str(path), "--nodes", str(point.world // devices), "--devices-per-node", str(devices)]


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our own options, and the others, which are the recipe's."""
    parser = argparse.ArgumentParser(
        prog="contentv sweep",
        description=__doc__.split(": ", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", metavar="RECIPE", help="as contentv train takes it")
    parser.add_argument("--grid", action="append", default=[], metavar="KEY=V,V", help="a key and the values it takes")
    parser.add_argument("--world", default="1", metavar="N,N", help="numbers of processes; default 1")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="of each point; default 10")
    parser.add_argument("--scaling", choices=(STRONG, WEAK, "both"), default="both", help="default both")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default runs/sweep-RECIPE")
    parser.add_argument("--limit", type=float, default=3600.0, metavar="SECONDS", help="of a point; default 3600")
    keys = ", ".join(hardware.key for hardware in HARDWARE)
    parser.add_argument("--hardware", metavar="NAME", help=f"what to plan for, beside what is measured: {keys}")
    parser.add_argument("--launch", default="", metavar="OPTIONS",
                        help="with --slurm, for contentv launch: '--partition debug --time 30'")  # fmt: skip
    parser.add_argument("--slurm", action="store_true", help="hand each point to contentv launch")
    parser.add_argument("--devices-per-node", type=int, default=8, metavar="N", help="with --slurm; default 8")
    parser.add_argument("--json", action="store_true", help="print one JSON value on stdout")
    return parser.parse_known_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
