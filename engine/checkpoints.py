"""The checkpoints of a run: where they lie, what each says of itself, which are kept, which a run may go on from.

checkpoints/step-00000050/
    checkpoint.json   step, global sample index, kernels, codec and text identity (`CheckpointFacts`), size and sha256
                      of every other file, and its own digest
    config.yaml       the resolved configuration that made it
    codec/            the codec itself, so that samples need no shards
    tensors/          weights, optimizer, average: megatron-core's dist_checkpointing
"""

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from ..parallel.reading import file_sha256, read_json, shown
from . import config_yaml
from .config import RunConfig
from .data.manifest import CODEC_FOLDER, TextEntry, digest_of
from .plain import build

FOLDER = "checkpoints"
FACTS_FILE = "checkpoint.json"
TENSORS_FOLDER = "tensors"
FORMAT = "contentv-checkpoint-2"
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
    """Frames, height, width in pixels: what a sample is by default."""

    def __post_init__(self):
        for name in ("step", "sample_index"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if min(self.clip_size) < 1:
            raise ValueError(f"clip_size is {list(self.clip_size)}; it must be of sizes above 0")


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
            # Its name goes first: a removal that is killed half way must not leave what looks complete.
            going = self.folder / f".{self.path(step).name}.partial"
            self.path(step).rename(going)
            shutil.rmtree(going)


def write_facts(
    folder: Path, digests: dict[str, str], *, facts: CheckpointFacts, config: RunConfig, codec_folder: Path
) -> None:
    """The small files of a checkpoint that is being written in `folder`.

    `digests` are those of the files below tensors/ that other ranks have hashed; the rest, all small, is hashed here.
    """
    shutil.copytree(codec_folder, folder / CODEC_FOLDER)
    config_yaml.save(config, folder)
    known = {f"{TENSORS_FOLDER}/{name}": digest for name, digest in digests.items()}
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": known.get(name) or file_sha256(folder / name)}
        for name in sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    }
    # Through JSON once, so that tuples are lists as they will be when the digest is checked on reading.
    content = json.loads(json.dumps({"format": FORMAT, **asdict(facts), "files": files}))
    content["digest"] = digest_of(content)
    (folder / FACTS_FILE).write_text(json.dumps(content, indent=2) + "\n")


def read_facts(folder: Path) -> CheckpointFacts:
    """What checkpoint.json says, after every file's size, and the digest of all but the tensors, were compared with it.

    Raises:
        ValueError: names the file that is broken, missing or cut short, and the remedy.
    """
    content = _read_content(folder)
    _check_files(folder, content["files"])
    return _facts(folder / FACTS_FILE, content)


def tensor_digests(folder: Path) -> dict[str, str]:
    """Name of each file below tensors/ -> its sha256 (hex): what `parallel.checkpoint.verify` compares."""
    files = _read_content(folder)["files"]
    return {
        name.removeprefix(f"{TENSORS_FOLDER}/"): record["sha256"]
        for name, record in files.items()
        if name.startswith(f"{TENSORS_FOLDER}/")
    }


def _read_content(folder: Path) -> dict:
    """checkpoint.json with its own digest checked and every file's record well formed."""
    path = folder / FACTS_FILE
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a checkpoint's facts ({type(error).__name__}: {error}); {REMEDY}") from None
    found = content.get("format") if isinstance(content, dict) else type(content).__name__
    if found != FORMAT:
        raise ValueError(
            f"{path}: format is {found!r}; this version reads {FORMAT!r}: go on with the version that wrote it, or "
            "move the run away and start again"
        )
    if content.get("digest") != digest_of(content):
        raise ValueError(f"{path}: found digest {digest_of(content)}; expected {content.get('digest')}: {REMEDY}")
    files = content.get("files")
    for name, record in files.items() if isinstance(files, dict) else [("files", files)]:
        parts = PurePosixPath(name).parts
        inside = bool(parts) and ".." not in parts and not name.startswith("/") and "\0" not in name
        kinds = {key: type(value) for key, value in record.items()} if isinstance(record, dict) else {}
        if not inside or kinds != {"bytes": int, "sha256": str}:
            raise ValueError(
                f"{path}: files says {shown(name)}: {shown(record)}; expected bytes and sha256 of a file in this "
                f"folder: {REMEDY}"
            )
    return content


def _facts(path: Path, content: dict) -> CheckpointFacts:
    """The fields of checkpoint.json, each of its type and possible."""
    plain = {name: value for name, value in content.items() if name not in ("format", "files", "digest")}
    try:
        return build(CheckpointFacts, plain, "", str(path))
    except ValueError as error:
        raise ValueError(f"{error}: {REMEDY}") from None


def _check_files(folder: Path, files: dict[str, dict]) -> None:
    """Finds what an interrupted copy leaves out or cuts short, and what changed in the files anything is read from.

    The tensors' digests are `parallel.checkpoint.verify`'s to compare, by all ranks together.
    """
    for name, record in files.items():
        path, expected = folder / name, record["bytes"]
        found = path.stat().st_size if path.is_file() else "no file"
        if found != expected:
            raise ValueError(f"{path}: found {found}; expected {expected} bytes: {REMEDY}")
    for name, record in files.items():
        if not name.startswith(f"{TENSORS_FOLDER}/") and file_sha256(folder / name) != record["sha256"]:
            raise ValueError(f"{folder / name}: not the bytes this checkpoint was written with (by sha256): {REMEDY}")


def check_resume(folder: Path, facts: CheckpointFacts, config: RunConfig, codec_identity: str, text: TextEntry) -> None:
    """Refuses a configuration or data that would go on with another model, other samples or another number format."""
    name = STEP_NAME.fullmatch(folder.name)
    if name and int(name[1]) != facts.step:
        raise ValueError(
            f"{folder} holds a checkpoint of step {facts.step}: give the folder that step's name, or remove it to go "
            "on from the one before it"
        )
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
    if facts.sample_index % config.trainer.global_batch:
        raise ValueError(
            f"{folder / FACTS_FILE}: sample_index is {facts.sample_index}; it must be a multiple of "
            f"trainer.global_batch, {config.trainer.global_batch}: {REMEDY}"
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
