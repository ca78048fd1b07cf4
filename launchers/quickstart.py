"""`contentv quickstart`: real clips to a trained toy model and its sampled videos, with a kill and a resume on the way.

    clips -> latent shards -> training, killed half way -> training resumed to its end -> figures, samples, pictures

Every stage is a process of its own, the commands a user would type. What is there already is reused.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..engine.config import RunConfig
from .evaluate import SUMMARY_FILE
from .footprint import Footprint, kill

RECIPE = "quickstart"
REPEATED = 50
"""Steps between the checkpoint that is resumed from and the kill: what the two processes are compared over."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    from .command_line import call

    return call(run, argv)


def run(argv: Sequence[str]) -> int:
    parse(argv)
    from .recipes import RECIPES

    config = RECIPES[RECIPE]()
    folder = Path(config.run.folder)
    footprint = Footprint()
    try:
        footprint.run(stage("data", RECIPE, "--clips-only"))
        started = time.monotonic()
        footprint.run(stage("data", RECIPE))
        train(config, folder, footprint)
        summarise(folder, footprint, started)
    except subprocess.CalledProcessError as error:
        print(f"error: the stage `{' '.join(error.cmd[2:])}` ended with status {error.returncode}", file=sys.stderr)
        return error.returncode if error.returncode > 0 else 1
    report(folder)
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="contentv quickstart", description=__doc__.split(": ", 1)[1])
    return parser.parse_args(argv)


def stage(name: str, *arguments: str) -> list[str]:
    """The command line of one subcommand, run by this very Python."""
    return [sys.executable, "-m", f"{__package__}.{name}", *arguments]


def train(config: RunConfig, folder: Path, footprint: Footprint) -> None:
    """Trains to the half and a little further, kills that process, and lets another finish from the half."""
    from ..engine.checkpoints import RESUMED, UNDISTURBED, CheckpointFolder

    checkpoints, undisturbed = CheckpointFolder(folder), CheckpointFolder(folder / UNDISTURBED)
    half = config.trainer.max_steps // 2
    killed_at = half + REPEATED
    done = max(checkpoints.steps(), default=0)
    if done >= config.trainer.max_steps:
        tell(f"training: reusing {checkpoints.latest()}, which is complete")
        return
    if not undisturbed.steps() and done < killed_at:
        tell(f"training: to step {half}, {REPEATED} further, then a kill (SIGKILL), as if the machine had failed")
        footprint.run(stage("train", RECIPE), watch=when_published(checkpoints, killed_at, kill))
        set_aside(folder, checkpoints, undisturbed, killed_at)
    tell(f"training: resuming from {checkpoints.latest()}")
    resumed = CheckpointFolder(folder / RESUMED)
    keep = when_published(checkpoints, killed_at, lambda _process: link(checkpoints, resumed, killed_at))
    footprint.run(stage("train", RECIPE), watch=keep)


def when_published(checkpoints, step: int, act: Callable) -> Callable:
    """A `watch` that acts once, as soon as the checkpoint of `step` is there."""
    waiting = True

    def watch(process) -> None:
        nonlocal waiting
        if waiting and step in checkpoints.steps():
            waiting = False
            act(process)

    return watch


def set_aside(folder: Path, checkpoints, undisturbed, step: int) -> None:
    """Keeps what the killed process did after the half as evidence, and leaves the run as the half had left it."""
    from ..engine.metrics import METRICS_FILE

    undisturbed.folder.mkdir(parents=True)
    shutil.copy(folder / METRICS_FILE, undisturbed.folder.parent / METRICS_FILE)
    checkpoints.path(step).rename(undisturbed.path(step))


def link(checkpoints, resumed, step: int) -> None:
    """Keeps a checkpoint that retention will let go: hard links, since a published checkpoint never changes."""
    resumed.folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(checkpoints.path(step), resumed.path(step), copy_function=hard_link)


def hard_link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)


def summarise(folder: Path, footprint: Footprint, started: float) -> None:
    """Figures, samples and pictures, unless they are newer than the last checkpoint; writes summary.json."""
    from ..engine.checkpoints import CheckpointFolder

    path = folder / SUMMARY_FILE
    if path.is_file() and path.stat().st_mtime > CheckpointFolder(folder).latest().stat().st_mtime:
        tell(f"samples and figures: reusing those of {path}")
        return
    command = stage("evaluate", str(folder), "--json", "--pictures")
    figures = json.loads(footprint.run(command, stdout=subprocess.PIPE))
    figures["seconds"] = round(time.monotonic() - started, 1)
    figures["peak_rss_mib"] = round(footprint.peak_rss_mib, 1)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(figures, indent=2) + "\n")
    partial.replace(path)


def report(folder: Path) -> None:
    """Where everything is, and the figures."""
    places = {
        "configuration": "config.yaml",
        "metrics": "metrics.jsonl",
        "TensorBoard": "tensorboard",
        "checkpoints": "checkpoints",
        "videos": "samples",
        "contact sheet": "contact_sheet.png",
        "loss curve": "loss.png",
        "figures": SUMMARY_FILE,
    }
    for name, place in places.items():
        print(f"{name:<14} {folder / place}")
    print((folder / SUMMARY_FILE).read_text(), end="")


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
