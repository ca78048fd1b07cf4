"""The evidence of a resume, kept in the run folder while a run is killed and goes on; `evaluation` judges it.

undisturbed/   metrics and last checkpoint of the process that was killed, REPEATED_STEPS past a checkpoint
resumed/       the checkpoint of that same last step, by the process that went on from the one before

Imports no torch: who watches over a run should weigh little beside it.
"""

import shutil
from pathlib import Path

from ..parallel.durable import publish_folder
from .checkpoints import CheckpointFolder
from .run_files import METRICS_FILE

UNDISTURBED = "undisturbed"
RESUMED = "resumed"
REPEATED_STEPS = 50
"""Steps that both processes take, after the checkpoint that is resumed from: all of them must be equal."""


def has_undisturbed(run_folder: Path) -> bool:
    return bool(CheckpointFolder(run_folder / UNDISTURBED).steps())


def forget(run_folder: Path) -> None:
    """Removes the evidence of an earlier attempt."""
    for stale in (UNDISTURBED, RESUMED):
        shutil.rmtree(run_folder / stale, ignore_errors=True)


def keep_undisturbed(run_folder: Path, step: int) -> None:
    """Sets aside what the killed process did up to `step`, and leaves the run as the checkpoint before had left it.

    Moving the checkpoint is the last act: a call that is interrupted before is repeated whole.
    """
    checkpoints, undisturbed = CheckpointFolder(run_folder), CheckpointFolder(run_folder / UNDISTURBED)
    undisturbed.folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(run_folder / METRICS_FILE, run_folder / UNDISTURBED / METRICS_FILE)
    checkpoints.path(step).rename(undisturbed.path(step))


def keep_resumed(run_folder: Path, step: int) -> None:
    """Keeps the checkpoint of `step`, which retention will let go; a second call does nothing.

    As hard links, since a published checkpoint never changes.
    """
    checkpoints, resumed = CheckpointFolder(run_folder), CheckpointFolder(run_folder / RESUMED)
    if step in resumed.steps():
        return
    partial = resumed.folder / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(checkpoints.path(step), partial, copy_function=hard_link)
    publish_folder(partial, resumed.path(step))


def hard_link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)
