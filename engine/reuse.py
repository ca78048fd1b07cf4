"""Whether what a run folder holds belongs to a recipe as it is now. Imports no torch.

A difference is refused with what differs, both values and the remedy; nothing is deleted.
"""

import hashlib
from pathlib import Path

from .checkpoints import FACTS_FILE, CheckpointFolder, read_facts
from .config import RunConfig
from .config_yaml import CONFIG_FILE, first_difference
from .data.manifest import read_manifest


def check_config(config: RunConfig, run_folder: Path) -> None:
    """ValueError where config.yaml, of the run or of its last checkpoint, says otherwise than `config`.

    Kernels aside: a run records those it found.
    """
    for folder in (run_folder, CheckpointFolder(run_folder).latest()):
        path = folder and folder / CONFIG_FILE
        if path is None or not path.is_file():
            continue
        difference = first_difference(path, config, aside="kernels")
        if difference:
            key, found, wanted = difference
            raise ValueError(f"{path} has {key} {found}, but recipe {config.recipe} has {wanted}: {_remedy(config)}")


def check_data(config: RunConfig, run_folder: Path) -> None:
    """ValueError where the last checkpoint was trained on another codec or text encoder than the shards have now."""
    latest = CheckpointFolder(run_folder).latest()
    if latest is None:
        return
    facts, manifest = read_facts(latest), read_manifest(Path(config.data.folder))
    for name, found, wanted in (
        ("codec", facts.codec_identity, manifest.codec_identity),
        ("text encoder", facts.text.identity, manifest.text.identity),
    ):
        if found != wanted:
            raise ValueError(
                f"{latest} was trained with {name} {found[:12]}, but {config.data.folder} holds {wanted[:12]}: "
                f"{_remedy(config)}"
            )


def digest(run_folder: Path) -> str:
    """sha256 (hex) of what the last checkpoint says of itself: step, data, configuration."""
    latest = CheckpointFolder(run_folder).latest()
    assert latest is not None, f"{run_folder} holds no checkpoint"
    return hashlib.sha256((latest / FACTS_FILE).read_bytes() + (latest / CONFIG_FILE).read_bytes()).hexdigest()


def _remedy(config: RunConfig) -> str:
    return f"move or remove {config.run.folder}, or start this in another folder"
