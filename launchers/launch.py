"""`contentv launch RECIPE [--section.key value]... --nodes N --devices-per-node N`: a run as a Slurm job.

The job's script, the resolved configuration and a snapshot of the code go into the run folder, below jobs/: a job that
is requeued runs what was sent. It saves ahead of its time limit and when it is preempted, requeues itself and goes on
at the exact sample. --dry-run prints the script instead, anywhere, and writes nothing. Imports no torch.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from .. import __version__
from ..engine import snapshot
from ..engine.config_yaml import CONFIG_FILE, to_yaml
from ..engine.data.manifest import MANIFEST_FILE
from ..engine.node_floor import SHARE
from ..engine.restarts import Restarts
from ..engine.run_files import JOBS_FOLDER, LOGS_FOLDER
from ..engine.sent_jobs import SCRIPT_FILE, SENT_FILE, sent_jobs
from ..engine.writable import check_folder
from ..parallel.durable import write_text
from . import slurm_queue
from .command_line import call, parse_run, run_help, starting_point, tell
from .grid import Point, points_of
from .recipes import RECIPES
from .slurm_script import SET, BelowFloor, Device, NodeCheck, Place, Runtime, SlurmJob, script, with_mounts

PASSED_ON = ("account", "partition", "qos", "constraint", "time")
"""Options of sbatch that have the same name here."""
OURS = ("nodes", "ntasks-per-node", "ntasks", "requeue", "no-requeue", "signal", "open-mode", "output", "error",
        "array", "chdir", "dependency", "job-name", "cpus-per-task", "gpus", "gpus-per-node", "gpus-per-task",
        "ntasks-per-gpu", *PASSED_ON)  # fmt: skip
"""Options of sbatch that --sbatch does not take: the script relies on them, or they have an option of their own."""

CHECK_MINUTES = 10
"""Of a node check: hundreds of ranks that start Python from one file system, and two minutes for one that hangs."""
LONGEST_AHEAD = 65535
"""Seconds ahead of the time limit that sbatch's --signal takes."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return call(run, argv)


def run(argv: Sequence[str]) -> int:
    if not argv or {"-h", "--help"} & set(argv):
        return _help(argv)
    starting_point(argv[0])  # a recipe that is unknown is said before anything else
    options, changes = parse(argv[1:])
    config = parse_run([argv[0], *changes], "contentv launch")
    points = points_of(config, options.grid)
    for point in points:
        check(point, options)
    jobs = Jobs(options, points, Path(config.run.folder).absolute())
    text = jobs.text(1, is_last=options.chain == 1)
    if options.dry_run:
        print(text, end="")
        return 0
    if not slurm_queue.is_here():
        raise ValueError(
            "there is no sbatch here: launch on a login node of the cluster, or say --dry-run to see the script"
        )
    jobs.refuse_two()
    for shards in {point.config.data.folder for point in points}:
        if not (Path(shards) / MANIFEST_FILE).is_file():
            tell(f"warning: {shards} holds no {MANIFEST_FILE}: the job fails if the nodes do not see it either")
    return report(jobs.send(), jobs, as_json=options.json)


def report(numbers: list[str], jobs: "Jobs", *, as_json: bool) -> int:
    """Job numbers on stdout; where to look next on stderr."""
    print(json.dumps({"jobs": numbers, "folder": str(jobs.folder)}) if as_json else "\n".join(numbers))
    run = jobs.points[0].run
    tell(f"sent; contentv status {run} shows how it goes, contentv logs {run} --rank 0 --follow what it says, "
         f"contentv stop {run} saves and ends it")  # fmt: skip
    return 0


def check(point: Point, options: argparse.Namespace) -> None:
    """Raises ValueError where the layout does not fit the devices, or the folder cannot be written."""
    try:
        point.config.micro_batches(options.nodes * options.devices_per_node)
    except ValueError as error:
        devices = f"--nodes {options.nodes} x --devices-per-node {options.devices_per_node}"
        raise ValueError(f"{devices} = {options.nodes * options.devices_per_node} processes: {error}") from None
    if not options.dry_run:
        check_folder("run.folder", point.run)


class Jobs:
    """What is written and sent: one job, or one for each link of a chain."""

    def __init__(self, options: argparse.Namespace, points: list[Point], base: Path):
        self.options, self.points, self.base = options, points, base
        taken = [int(path.name) for path in (base / JOBS_FOLDER).glob("*") if path.name.isdigit()]
        self.folder = base / JOBS_FOLDER / str(max(taken, default=0) + 1)

    def text(self, link: int, *, is_last: bool) -> str:
        """The script of link number `link`, counted from 1."""
        options, config = self.options, self.points[0].config
        working = Path.cwd()
        mounts = {working, self.base, Path(config.data.folder).absolute(), *map(Path, options.mount)}
        place = Place(
            runs=tuple(point.run for point in self.points),
            job=self.folder,
            logs=self.base / LOGS_FOLDER,
            working=working,
            mounts=tuple(sorted(path for path in mounts if not mounts & set(path.parents))),
        )
        job = slurm_job(options, name=options.job_name or self.base.name, is_last=is_last)
        job = replace(job, environment=with_mounts(job, place.mounts))
        what = f"contentv {__version__}, {config.recipe} to step {config.trainer.max_steps}"
        what += f", link {link} of {options.chain}" if options.chain > 1 else ""
        return script(job, place, what + (f", {len(self.points)} points" if len(self.points) > 1 else ""))

    def refuse_two(self) -> None:
        """Two jobs that write one run folder at the same time would spoil it."""
        for sent in sent_jobs(self.base):
            queued = slurm_queue.look_up(sent)
            if not queued.is_over:
                raise ValueError(
                    f"job {sent} of {self.base} is {queued.state}: wait for it, end it with contentv stop {self.base}, "
                    "or choose another --run.folder; --chain sends several jobs one after another"
                )

    def send(self) -> list[str]:
        """Writes everything, submits; returns the jobs' numbers. A submission that fails leaves nothing to be run."""
        snapshot.take(self.folder / "code")
        for number, point in enumerate(self.points):
            name = CONFIG_FILE if len(self.points) == 1 else f"config-{number}.yaml"
            write_text(self.folder / name, to_yaml(point.config))
            (point.run / LOGS_FOLDER).mkdir(parents=True, exist_ok=True)
            Restarts(point.run).launch()
        (self.base / LOGS_FOLDER).mkdir(parents=True, exist_ok=True)
        numbers: list[str] = []
        for link in range(1, self.options.chain + 1):
            path = self.folder / (SCRIPT_FILE if self.options.chain == 1 else f"job-{link}.sbatch")
            write_text(path, self.text(link, is_last=link == self.options.chain))
            numbers.append(slurm_queue.submit(str(path), dependency=f"afterany:{numbers[-1]}" if numbers else None))
            # At once: a link that Slurm refuses must not hide those it took.
            for point_number, point in enumerate(self.points):
                self._remember(point, point_number, numbers[-1])
        return numbers

    def _remember(self, point: Point, number: int, job: str) -> None:
        name = job if len(self.points) == 1 else f"{job}_{number}"
        for folder in {point.run, self.base}:
            with (folder / SENT_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"job": name, "script": str(self.folder), "time": round(time.time(), 3)}) + "\n")


def slurm_job(options: argparse.Namespace, *, name: str, is_last: bool) -> SlurmJob:
    passed = [(option, getattr(options, option)) for option in PASSED_ON if getattr(options, option) is not None]
    passed += [("cpus-per-task", str(options.cpus_per_device))] if options.cpus_per_device else []
    return SlurmJob(
        name=name,
        nodes=options.nodes,
        devices_per_node=options.devices_per_node,
        device=options.device,
        sbatch=(*passed, *(_sbatch_option(given, options.devices_per_node) for given in options.sbatch)),
        save_ahead=options.save_ahead,
        max_restarts=options.max_restarts,
        node_check=options.node_check,
        node_check_limit=options.node_check_limit,
        node_floor=options.node_floor,
        below_floor=options.below_floor,
        python=options.python or ("python3" if options.container else sys.executable),
        bookkeeper=sys.executable,
        container=options.container,
        container_runtime=options.container_runtime,
        environment=tuple(_variable(given) for given in options.environment),
        is_last=is_last,
        array_limit=options.array,
    )


def _sbatch_option(given: str, devices: int) -> tuple[str, str | None]:
    name, equals, value = given.lstrip("-").partition("=")
    # sbatch takes the beginning of a name for the whole. Only a kind of GPU may be said: h100:8.
    is_ours = len(name) > 1 and any(ours.startswith(name) for ours in OURS)
    if is_ours and (name, value.rpartition(":")[2]) != ("gpus-per-node", str(devices)):
        raise ValueError(f"--sbatch {given!r}: {name} has an option of its own, or the script relies on it; see "
                         "contentv launch --help")  # fmt: skip
    if len(name) == 1:
        raise ValueError(f"--sbatch is {given!r}; write the option's long name, for example --sbatch mem=0")
    if not name or "\n" in given or '"' in given or (equals and not value):
        raise ValueError(f'--sbatch is {given!r}; write option or option=value in one line without ", for example '
                         "--sbatch exclusive --sbatch mem=0")  # fmt: skip
    return name, value if equals else None


def _variable(given: str) -> tuple[str, str]:
    name, equals, value = given.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"--environment is {given!r}; write NAME=VALUE, for example NCCL_SOCKET_IFNAME=ib0")
    if name in SET:
        raise ValueError(f"--environment {given!r}: the script sets {name} itself; ranks would not find each other, "
                         "their devices or the code")  # fmt: skip
    return name, value


def _positive(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 2**20:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {2**20}")
    return int(text)


def _count(text: str) -> int:
    return 0 if text == "0" else _positive(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1, such as 0.5")
    return share


def _word(text: str) -> str:
    if not text or any(character in text for character in '"\n\0'):
        raise argparse.ArgumentTypeError(f'{text!r} is empty, or holds " or a line end')
    return text


def _help(argv: Sequence[str]) -> int:
    if not argv:
        raise ValueError(f"no recipe was given; write contentv launch RECIPE, with one of {', '.join(RECIPES)}")
    # All options of a configuration with their values: train prints them.
    print(run_help("contentv launch").replace("contentv launch RECIPE --help", "contentv train RECIPE --help"))
    print("\n" + parser().format_help(), end="")
    return 0


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """This command's own options, and the rest: changes of the configuration."""
    options, changes = parser().parse_known_args(argv)
    if options.array and not options.grid:
        raise ValueError(
            "--array says how many points of a sweep run at once; name the points: --grid section.key=value,value"
        )
    limit = slurm_queue.seconds_of(options.time or "")
    if limit is not None and limit < 2 * options.save_ahead:
        raise ValueError(
            f"--time {options.time} is {limit} s and --save-ahead is {options.save_ahead} s: each job would be asked "
            "to save before it has trained for long; give at least twice --save-ahead as --time"
        )
    options.node_check_limit = node_check_limit(options.node_check_limit, limit)
    if options.save_ahead > LONGEST_AHEAD:
        raise ValueError(f"--save-ahead is {options.save_ahead}; Slurm takes at most {LONGEST_AHEAD} s")
    if options.grid and options.chain > 1:
        raise ValueError(
            "--chain and --grid cannot be combined: launch the sweep's points one by one, or leave --chain out"
        )
    return options, changes


def node_check_limit(given: int | None, seconds: int | None) -> int:
    """Minutes of a node check in a job of so many seconds, None: not known. Raises ValueError for too many."""
    if given is not None and seconds is not None and 60 * given >= seconds:
        raise ValueError(
            f"--node-check-limit {given} minutes leave nothing of --time, which is {seconds} s; give fewer, or off as "
            "--node-check"
        )
    return given or (CHECK_MINUTES if seconds is None else max(1, min(CHECK_MINUTES, seconds // 120)))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="contentv launch RECIPE", description=__doc__.split(": ", 1)[1], allow_abbrev=False, add_help=False
    )
    size = made.add_argument_group("size and queue")
    size.add_argument("--nodes", type=_positive, required=True, metavar="N", help="nodes of the job")
    size.add_argument("--devices-per-node", type=_positive, required=True, metavar="N", help="ranks on each node")
    size.add_argument("--device", choices=get_args(Device), default=get_args(Device)[0],
                      help="what they are; default: %(default)s")  # fmt: skip
    for name in PASSED_ON:
        # Of the user's profile, and into the script: sbatch itself would prefer it to what is given here.
        profile = os.environ.get(f"SBATCH_{name.upper()}") or None
        size.add_argument(f"--{name}", type=_word, default=profile, metavar=name.upper(), help=f"sbatch's --{name}")
    size.add_argument("--cpus-per-device", type=_positive, metavar="N",
                      help="sbatch's --cpus-per-task: threads of a rank's loader; default: the cluster's")  # fmt: skip
    size.add_argument("--job-name", type=_word, metavar="NAME", help="default: the run folder's name")
    size.add_argument("--sbatch", action="append", default=[], metavar="OPTION[=VALUE]",
                      help="any other option of sbatch, without dashes; may be repeated")  # fmt: skip
    life = made.add_argument_group("life")
    life.add_argument("--chain", type=_positive, default=1, metavar="N",
                      help="send N jobs, each waiting for the one before: N time limits long; default: 1")  # fmt: skip
    life.add_argument("--save-ahead", type=_positive, default=300, metavar="SECONDS",
                      help="ask ranks to save so long before the time limit; default: 300")  # fmt: skip
    life.add_argument("--max-restarts", type=_count, default=100, metavar="N",
                      help="failures after which the run is not restarted any more; default: 100")  # fmt: skip
    life.add_argument("--node-check", choices=get_args(NodeCheck), default="exclude",
                      help="a bad node: requeue without it, or stop; off: no check; default: exclude")  # fmt: skip
    life.add_argument("--node-check-limit", type=_positive, metavar="MINUTES",
                      help="after which Slurm ends a check in which all ranks hang; default: 10, or half of --time "
                      "where that is less")  # fmt: skip
    life.add_argument("--node-floor", type=_share, default=SHARE, metavar="SHARE",
                      help="of the published figures of its kind that a device must do (engine/hardware.py), whatever "
                      "the other nodes do; 0: nothing is asked; default: %(default)s")  # fmt: skip
    life.add_argument("--below-floor", choices=get_args(BelowFloor), default="warn",
                      help="a node below that floor: a warning, or as any bad node; default: %(default)s")  # fmt: skip
    sweep = made.add_argument_group("sweep")
    sweep.add_argument("--grid", action="append", default=[], metavar="KEY=VALUE,VALUE",
                       help="one array task for each combination, in a folder of its own; may be repeated")  # fmt: skip
    sweep.add_argument("--array", type=_count, default=0, metavar="N", help="tasks that run at once; 0: all")
    nodes = made.add_argument_group("software on the nodes")
    nodes.add_argument("--container", type=_word, metavar="IMAGE", help="run the ranks in it")
    nodes.add_argument("--container-runtime", choices=get_args(Runtime), default="pyxis", help="default: pyxis")
    nodes.add_argument("--mount", action="append", default=[], type=os.path.abspath, metavar="PATH",
                       help="what a container must see beside working, run and data folder; repeatable")  # fmt: skip
    nodes.add_argument("--python", metavar="PATH", help="default: this Python; in a container python3")
    nodes.add_argument("--environment", action="append", default=[], metavar="NAME=VALUE",
                       help="set on every rank, for example NCCL_SOCKET_IFNAME=ib0; may be repeated")  # fmt: skip
    made.add_argument("--dry-run", action="store_true", help="print the script on stdout, write and send nothing")
    made.add_argument("--json", action="store_true", help="print one JSON value on stdout")
    return made


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
