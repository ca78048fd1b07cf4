"""`contentv quickstart`: real clips to a trained toy model and its sampled videos, with a kill and a resume on the way.

    clips -> latent shards -> training, killed half way -> training resumed to its end -> figures, samples, pictures

Every stage is a process of its own, the commands a user would type. What is there already is reused.
"""

import argparse
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..engine.config import RunConfig
from ..engine.places import check_folder
from .evaluate import SUMMARY_FILE
from .footprint import Footprint, ending_like_ctrl_c, kill

RECIPE = "quickstart"
REPEATED = 50
"""Steps between the checkpoint that is resumed from and the kill: what the two processes are compared over."""
PLACES = {
    "configuration": "config.yaml",
    "metrics": "metrics.jsonl",
    "TensorBoard": "tensorboard",
    "checkpoints": "checkpoints",
    "videos": "samples",
    "contact sheet": "contact_sheet.png",
    "loss curve": "loss.png",
    "figures": SUMMARY_FILE,
}
"""What a whole run folder holds."""
SPENT_FILE = "spent.json"
INTERRUPTED = 130
"""As a shell reports a command that Ctrl-C ended."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    from .command_line import call

    try:
        with ending_like_ctrl_c():
            return call(run, argv)
    except KeyboardInterrupt:
        tell("interrupted; the same command goes on from here")
        return INTERRUPTED


def run(argv: Sequence[str]) -> int:
    parse(argv)
    from .recipes import RECIPES

    config = RECIPES[RECIPE]()
    folder = Path(config.run.folder)
    check_folder("run.folder", folder)
    footprint = Footprint()
    try:
        footprint.run(stage("data", RECIPE, "--clips-only"))
        with Spent.counting(folder, footprint) as spent:
            footprint.run(stage("data", RECIPE))
            train(config, folder, footprint)
            summarise(folder, footprint, spent)
    except subprocess.CalledProcessError as error:
        # What went wrong, the stage has said itself.
        tell(f"error: the stage `{' '.join(error.cmd[2:])}` ended with status {error.returncode}; the same command "
             "goes on from there")  # fmt: skip
        return error.returncode if error.returncode > 0 else 1
    report(folder)
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="contentv quickstart", description=__doc__.split(": ", 1)[1])
    return parser.parse_args(argv)


def stage(name: str, *arguments: str) -> list[str]:
    """The command line of one subcommand, run by this very Python."""
    return [sys.executable, "-m", f"{__package__}.{name}", *arguments]


class Spent:
    """Seconds and memory of everything after the downloads, over all calls that a run took to make."""

    def __init__(self, path: Path, footprint: Footprint):
        self.path, self.footprint, self.started = path, footprint, time.monotonic()
        earlier = json.loads(path.read_text()) if path.is_file() else {"seconds": 0.0, "peak_rss_mib": 0.0}
        self.seconds_before, self.peak_before = earlier["seconds"], earlier["peak_rss_mib"]

    @classmethod
    @contextlib.contextmanager
    def counting(cls, folder: Path, footprint: Footprint) -> Iterator["Spent"]:
        """Counts what is done inside; writes spent.json however it ends, for the call that goes on."""
        spent = cls(folder / SPENT_FILE, footprint)
        try:
            yield spent
        finally:
            write_json(spent.path, spent.figures())

    def figures(self) -> dict[str, float]:
        return {
            "seconds": round(self.seconds_before + time.monotonic() - self.started, 1),
            "peak_rss_mib": round(max(self.peak_before, self.footprint.peak_rss_mib), 1),
        }


def train(config: RunConfig, folder: Path, footprint: Footprint) -> None:
    """Trains to the half and a little further, kills that process, and lets another finish from the half.

    Goes on from wherever an earlier call was interrupted.
    """
    from ..engine.checkpoints import RESUMED, UNDISTURBED, CheckpointFolder

    checkpoints, undisturbed, resumed = (
        CheckpointFolder(place) for place in (folder, folder / UNDISTURBED, folder / RESUMED)
    )
    half = config.trainer.max_steps // 2
    killed_at = half + REPEATED
    done = max(checkpoints.steps(), default=0)
    if done >= config.trainer.max_steps:
        tell(f"training: reusing {checkpoints.latest()}, which is complete")
        return
    if done < half or (done < killed_at and not undisturbed.steps()):
        tell(f"training: to step {half}, {REPEATED} further, then a kill (SIGKILL), as if the machine had failed")
        for stale in (UNDISTURBED, RESUMED):
            shutil.rmtree(folder / stale, ignore_errors=True)
        run_until(killed_at, checkpoints, footprint)
    if not undisturbed.steps() and checkpoints.steps()[-2:] == [half, killed_at]:
        set_aside(folder, checkpoints, killed_at)
    if not undisturbed.steps():
        tell(f"training: {folder} is past step {killed_at} and was never killed, so no resume can be compared; for "
             "that, remove it and start again")  # fmt: skip
    tell(f"training: resuming from {checkpoints.latest()}")
    keep = when_published(checkpoints, killed_at, lambda _process: link(checkpoints, resumed, killed_at))
    footprint.run(stage("train", RECIPE), watch=keep if undisturbed.steps() else None)


def run_until(step: int, checkpoints, footprint: Footprint) -> None:
    """Trains until the checkpoint of `step` is published, then kills the process."""
    try:
        footprint.run(stage("train", RECIPE), watch=when_published(checkpoints, step, kill))
    except subprocess.CalledProcessError as error:
        # Killed before that: by somebody else, for example for want of memory.
        if error.returncode != -signal.SIGKILL or step not in checkpoints.steps():
            raise


def when_published(checkpoints, step: int, act: Callable) -> Callable:
    """A `watch` that acts once, as soon as the checkpoint of `step` is there."""
    waiting = True

    def watch(process) -> None:
        nonlocal waiting
        if waiting and step in checkpoints.steps():
            waiting = False
            act(process)

    return watch


def set_aside(folder: Path, checkpoints, step: int) -> None:
    """Keeps what the killed process did after the half as evidence, and leaves the run as the half had left it.

    Moving the checkpoint is the last act: a call that is interrupted before is repeated whole.
    """
    from ..engine.checkpoints import UNDISTURBED, CheckpointFolder
    from ..engine.metrics import METRICS_FILE

    undisturbed = CheckpointFolder(folder / UNDISTURBED)
    undisturbed.folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / METRICS_FILE, folder / UNDISTURBED / METRICS_FILE)
    checkpoints.path(step).rename(undisturbed.path(step))


def link(checkpoints, resumed, step: int) -> None:
    """Keeps a checkpoint that retention will let go: hard links, since a published checkpoint never changes."""
    if step in resumed.steps():
        return
    partial = resumed.folder / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(checkpoints.path(step), partial, copy_function=hard_link)
    partial.rename(resumed.path(step))


def hard_link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)


def summarise(folder: Path, footprint: Footprint, spent: Spent) -> None:
    """Figures, samples and pictures, unless they are newer than the last checkpoint; writes summary.json."""
    from ..engine.checkpoints import CheckpointFolder

    path = folder / SUMMARY_FILE
    is_whole = all((folder / place).exists() for place in PLACES.values())
    if is_whole and path.stat().st_mtime > CheckpointFolder(folder).latest().stat().st_mtime:
        tell(f"samples and figures: reusing those of {path}")
        return
    command = stage("evaluate", str(folder), "--json", "--pictures")
    figures = json.loads(footprint.run(command, stdout=subprocess.PIPE))
    write_json(path, figures | spent.figures())


def write_json(path: Path, values: dict) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(values, indent=2) + "\n")
    partial.replace(path)


def report(folder: Path) -> None:
    """Where everything is, and the figures."""
    for name, place in PLACES.items():
        print(f"{name:<14} {folder / place}")
    print((folder / SUMMARY_FILE).read_text(), end="")


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
