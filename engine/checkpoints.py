"""The checkpoints of a run: where they lie, what each says of itself, which are kept, which a run may go on from.

checkpoints/step-00000050/
    checkpoint.json   step, global sample index, kernels, codec and text identity (`CheckpointFacts`)
    config.yaml       the resolved configuration that made it
    codec/            the codec itself, so that samples need no shards
    tensors/          weights, optimizer, average: megatron-core's dist_checkpointing
"""

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from . import config_yaml
from .config import RunConfig
from .data.manifest import CODEC_FOLDER, TextEntry

FOLDER = "checkpoints"
FACTS_FILE = "checkpoint.json"
FORMAT = "contentv-checkpoint-1"
REMEDY = "restore it, or remove the checkpoint's folder to go on from the one before it"
STEP_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts:
    """checkpoint.json: everything a resume and a sample must agree with."""

    step: int
    """Updates made."""
    sample_index: int
    """Samples consumed: the data cursor, whatever the data-parallel size."""
    kernels: dict[str, str]
    """Operation -> backend."""
    codec_identity: str
    text: TextEntry
    clip_size: tuple[int, int, int]
    """Frames, height, width in pixels of the largest bucket: what a sample is by default."""


class CheckpointFolder:
    """The checkpoints below one run folder."""

    def __init__(self, run_folder: str | Path):
        self.folder = Path(run_folder) / FOLDER

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending: a folder has its name only once it is whole."""
        found = (STEP_NAME.fullmatch(path.name) for path in self.folder.glob("step-*") if path.is_dir())
        return sorted(int(match[1]) for match in found if match)

    def latest(self) -> Path | None:
        steps = self.steps()
        return self.path(steps[-1]) if steps else None

    def prune(self, keep: int) -> None:
        """Removes all but the `keep` newest (0: none is removed), and what a killed save left half written."""
        for path in self.folder.glob(".step-*.partial"):
            shutil.rmtree(path)
        for step in self.steps()[:-keep] if keep else []:
            shutil.rmtree(self.path(step))


def write_facts(folder: Path, facts: CheckpointFacts, config: RunConfig, codec_folder: Path) -> None:
    """The small files of a checkpoint that is being written in `folder`."""
    shutil.copytree(codec_folder, folder / CODEC_FOLDER)
    config_yaml.save(config, folder)
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    content = {"format": FORMAT, **asdict(facts), "files": sizes}
    (folder / FACTS_FILE).write_text(json.dumps(content, indent=2) + "\n")


def read_facts(folder: Path) -> CheckpointFacts:
    """What checkpoint.json says; ValueError naming the file that is broken, missing or cut short, and the remedy."""
    path = folder / FACTS_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = values.pop("format")
        if found != FORMAT:
            raise ValueError(f"{path}: format is {found!r}; this version reads {FORMAT!r}")
        values["text"] = TextEntry(**values["text"])
        values["clip_size"] = tuple(values["clip_size"])
        _check_files(folder, values.pop("files"))
        return CheckpointFacts(**values)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a checkpoint's facts ({type(error).__name__}: {error}); {REMEDY}") from None


def _check_files(folder: Path, sizes: dict[str, int]) -> None:
    """Finds what an interrupted copy leaves out or cuts short, which megatron would only find half way."""
    for name, expected in sizes.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else "no file"
        if found != expected:
            raise ValueError(f"{path}: found {found}; expected {expected} bytes: {REMEDY}")


def check_resume(folder: Path, facts: CheckpointFacts, config: RunConfig, codec_identity: str, text: TextEntry) -> None:
    """Refuses a configuration or data that would go on with another model, other samples or another number format."""
    before = config_yaml.load(folder / config_yaml.CONFIG_FILE)
    fixed = {
        "model": lambda run: run.model,
        "trainer.seed": lambda run: run.trainer.seed,
        "trainer.global_batch": lambda run: run.trainer.global_batch,
        "trainer.precision": lambda run: run.trainer.precision,
    }
    for name, read in fixed.items():
        if read(before) != read(config):
            raise ValueError(
                f"{folder} was made with {name} {_plain(read(before))}, but this run says {_plain(read(config))}: go "
                "on with the former, or choose another run.folder"
            )
    check_data(folder, facts, config.data.folder, codec_identity, text)
    wishes = config.kernels.wishes()
    for op, backend in facts.kernels.items():
        if wishes.get(op, "auto") not in ("auto", backend):
            raise ValueError(
                f"{folder} was made with {op} -> {backend}, but this run wishes for {wishes[op]}: the losses would "
                "part; leave kernels.wish out to go on with the former, or choose another run.folder"
            )


def check_data(folder: Path, facts: CheckpointFacts, shards: str | Path, codec_identity: str, text: TextEntry) -> None:
    """Refuses latents or captions of another codec or text encoder than the checkpoint in `folder` was trained on."""
    for name, found, expected in (("codec", codec_identity, facts.codec_identity), ("text", text, facts.text)):
        if found != expected:
            raise ValueError(
                f"{folder} was trained on latents and captions of {name} {_plain(expected)}, but {shards} holds "
                f"{_plain(found)}: point data.folder at the former shards, or choose another run.folder"
            )


def _plain(value) -> str:
    return str(config_yaml.to_plain(value)) if not isinstance(value, str) else value
