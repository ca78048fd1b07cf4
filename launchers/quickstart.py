"""`contentv quickstart`: real clips to a trained toy model and its sampled videos, with a kill and a resume on the way.

    clips -> latent shards -> training, killed half way -> training resumed to its end -> figures, samples, pictures

Every stage is a process of its own, the commands a user would type. What is there already is reused.
"""

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..engine import resume_evidence, reuse
from ..engine.checkpoints import FOLDER as CHECKPOINTS
from ..engine.checkpoints import CheckpointFolder
from ..engine.config import RunConfig, TrainerConfig
from ..engine.config_yaml import CONFIG_FILE
from ..engine.limits import judge
from ..engine.resume_evidence import REPEATED_STEPS
from ..engine.run_files import LOSS_FILE, METRICS_FILE, SAMPLES_FOLDER, SHEET_FILE, SUMMARY_FILE, TENSORBOARD_FOLDER
from ..engine.writable import check_folder
from ..parallel.durable import write_text
from .command_line import call, tell
from .footprint import Footprint, StageCosts, ending_like_ctrl_c, kill
from .recipes import RECIPES

RECIPE = "quickstart"
PLACES = {
    "configuration": CONFIG_FILE,
    "metrics": METRICS_FILE,
    "TensorBoard": TENSORBOARD_FOLDER,
    "checkpoints": CHECKPOINTS,
    "videos": SAMPLES_FOLDER,
    "contact sheet": SHEET_FILE,
    "loss curve": LOSS_FILE,
    "figures": SUMMARY_FILE,
}
"""What a whole run folder holds."""
INTERRUPTED = 130
"""As a shell reports a command that Ctrl-C ended."""
MISSED = 1


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    try:
        with ending_like_ctrl_c():
            return call(run, argv)
    except KeyboardInterrupt:
        tell("interrupted; the same command goes on from here")
        return INTERRUPTED


def run(argv: Sequence[str]) -> int:
    parse(argv)
    config = RECIPES[RECIPE]()
    folder = Path(config.run.folder)
    check_folder("run.folder", folder)
    reuse.check_config(config, folder)
    footprint = Footprint()
    try:
        footprint.run(stage("data", RECIPE, "--clips-only"))
        with StageCosts.counting(folder, footprint) as costs:
            footprint.run(stage("data", RECIPE))
            reuse.check_data(config, folder)
            train(config, folder, footprint)
            summarise(folder, footprint, costs)
    except subprocess.CalledProcessError as error:
        # What went wrong, the stage has said itself.
        tell(f"error: the stage `{' '.join(error.cmd[2:])}` ended with status {error.returncode}; the same command "
             "goes on from there")  # fmt: skip
        return error.returncode if error.returncode > 0 else 1
    return report(folder)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="contentv quickstart", description=__doc__.split(": ", 1)[1])
    return parser.parse_args(argv)


def stage(name: str, *arguments: str) -> list[str]:
    """The command line of one subcommand, run by this very Python."""
    return [sys.executable, "-m", f"{__package__}.{name}", *arguments]


def train(config: RunConfig, folder: Path, footprint: Footprint) -> None:
    """Trains to the half and a little further, kills that process, and lets another finish from the half.

    Goes on from wherever an earlier call was interrupted.
    """
    checkpoints = CheckpointFolder(folder)
    half, killed_at = kill_steps(config.trainer)
    done = max(checkpoints.steps(), default=0)
    if done >= config.trainer.max_steps:
        tell(f"training: reusing {checkpoints.latest()}, which is complete")
        return
    has_evidence = resume_evidence.has_undisturbed(folder)
    if done < half or (done < killed_at and not has_evidence):
        tell(f"training: to step {half}, {REPEATED_STEPS} further, then a kill (SIGKILL), as if the machine had failed")
        resume_evidence.forget(folder)
        run_until(killed_at, checkpoints, footprint)
        has_evidence = False
    if not has_evidence and checkpoints.steps()[-2:] == [half, killed_at]:
        resume_evidence.keep_undisturbed(folder, killed_at)
        has_evidence = True
    if not has_evidence:
        tell(f"training: {folder} is past step {killed_at} and was never killed, so no resume can be compared; for "
             "that, remove it and start again")  # fmt: skip
    tell(f"training: resuming from {checkpoints.latest()}")
    keep = when_published(checkpoints, killed_at, lambda _process: resume_evidence.keep_resumed(folder, killed_at))
    footprint.run(stage("train", RECIPE), watch=keep if has_evidence else None)


def kill_steps(trainer: TrainerConfig) -> tuple[int, int]:
    """The checkpoint that is resumed from, and the later one after which the process is killed."""
    half = trainer.max_steps // 2
    killed_at = half + REPEATED_STEPS
    assert half % trainer.checkpoint_every == 0 and killed_at % trainer.checkpoint_every == 0, (
        f"steps {half} and {killed_at} must both leave a checkpoint, but one comes every {trainer.checkpoint_every}: "
        "change the recipe's trainer.checkpoint_every or trainer.max_steps"
    )
    assert half < killed_at < trainer.max_steps and trainer.keep_checkpoints != 1, (
        f"the kill at step {killed_at} must come before the end, {trainer.max_steps}, while step {half} is still kept"
    )
    return half, killed_at


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


def summarise(folder: Path, footprint: Footprint, costs: StageCosts) -> None:
    """Figures, samples and pictures, unless they are those of the last checkpoint already; writes summary.json."""
    path, origin = folder / SUMMARY_FILE, reuse.digest(folder)
    is_whole = all((folder / place).exists() for place in PLACES.values())
    is_newer = is_whole and path.stat().st_mtime > CheckpointFolder(folder).latest().stat().st_mtime
    if is_newer and costs.summary_of == origin:
        tell(f"samples and figures: reusing those of {path}")
        return
    command = stage("evaluate", str(folder), "--json", "--pictures")
    figures = json.loads(footprint.run(command, stdout=subprocess.PIPE))
    write_text(path, json.dumps(figures | costs.figures(), indent=2) + "\n")
    costs.summary_of = origin


def report(folder: Path) -> int:
    """Prints where everything is, the figures, and which limits they meet; returns the exit status."""
    for name, place in PLACES.items():
        print(f"{name:<14} {folder / place}")
    text = (folder / SUMMARY_FILE).read_text(encoding="utf-8")
    print(text, end="")
    verdicts = judge(json.loads(text))
    for verdict in verdicts:
        print(f"{'met' if verdict.met else 'missed':<7} {verdict.name:<17} {verdict.found:>7}  ({verdict.limit})")
    missed = [verdict for verdict in verdicts if not verdict.met]
    required = [verdict.name for verdict in missed if verdict.is_required]
    if required:
        print(f"quickstart: missed {', '.join(required)}")
        return MISSED
    if missed:
        print(f"quickstart: good, but {', '.join(verdict.name for verdict in missed)} above the limit, as on a busy or "
              "slow machine: no failure")  # fmt: skip
    else:
        print("quickstart: every limit met")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
