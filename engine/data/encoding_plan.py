"""What an encoding will do, decided once: which clips, in which order and split, cut how, by which codec and encoder.

The plan is made by whichever process comes first and kept in the folder that is being filled. Every other process, and
every later start, reads it; one that was asked for something else is refused, so that no folder holds two encodings.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...parallel.durable import write_text
from .buckets import Buckets
from .captions import CaptionRow, read_captions
from .manifest import SPLITS
from .refusal import ClipRefused

WORK_FOLDER = "encoding"
"""Below the shard folder: the plan, and what has been done of it. It stays, as the record of where samples are from."""

PLAN_FILE = "plan.json"
FORMAT = "contentv-encoding-2"
"""Raised whenever the same request would give other shards."""

PART = 32
"""Clips a process takes on at once."""

VIDEO = ".avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm"
IMAGE = ".bmp .jpeg .jpg .png .webp"
SUFFIXES = frozenset(f"{VIDEO} {IMAGE}".split())
"""Files that are expected to have a caption; an image is a video of one frame."""


@dataclass(frozen=True, kw_only=True)
class EncodingRequest:
    """What was asked for. Everything here decides what the shards hold."""

    videos: str
    captions: str
    codec: str
    """pca, wan, or the folder of a codec."""
    text: str
    """minilm, sd3, or the folder of a Stable Diffusion 3 pipeline."""
    buckets: Buckets
    windows: int
    """Most samples from one clip, evenly spread over it."""
    held_out: float
    """Share of the videos that is kept for validation."""

    def __post_init__(self):
        if self.windows < 1:
            raise ValueError(f"--windows is {self.windows}; it must be at least 1")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"--held-out is {self.held_out}; it must be at least 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class PlannedClip:
    """One clip. Its samples have the ids number x windows, number x windows + 1, ..."""

    number: int
    file: str
    bytes: int
    """Of the file, so that another one under its name is noticed."""
    caption: str
    begin: float
    end: float | None
    split: str


@dataclass(frozen=True, kw_only=True)
class UnusedFile:
    """A file or a row of the captions that is no clip, by `ClipRefused`'s kinds."""

    file: str
    kind: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """plan.json."""

    request: dict[str, Any]
    clips: tuple[PlannedClip, ...]
    unused: tuple[UnusedFile, ...]
    text_identity: str = ""
    """Of the encoder that the first process loaded; "" until then."""

    def parts(self) -> list[Sequence[PlannedClip]]:
        """What processes share the work by."""
        return [self.clips[first : first + PART] for first in range(0, len(self.clips), PART)]

    def digest(self) -> str:
        """sha256 (hex) over everything that decides the shards."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def make_plan(request: EncodingRequest) -> Plan:
    """Looks at names and sizes, opens no video. ValueError for captions that make no sense, or no clip at all."""
    videos = Path(request.videos)
    rows = read_captions(request.captions)
    files = _files(videos, rows)
    silent = files.keys() - {row.file for row in rows}
    unused = [_unused(file, "no caption", "the captions have no row for it") for file in silent]
    unused += [_unused(row.file, "no caption", "its caption is empty") for row in rows if not row.caption]
    unused += [_unused(row.file, "no file", "the folder has no such file") for row in rows
               if row.caption and row.file not in files]  # fmt: skip
    usable = sorted(
        (row for row in rows if row.caption and row.file in files), key=lambda row: (row.file, row.begin, row.end or 0)
    )
    if not usable:
        raise ValueError(
            f"{videos} and {request.captions} have no clip in common ({len(files)} files, {len(rows)} rows): captions "
            "name files relative to the folder, with their suffix"
        )
    if len(usable) * request.windows > 2**32:
        raise ValueError(f"{len(usable)} clips with --windows {request.windows} are more than 2^32 samples: lower it")
    held_out = _held_out({row.file for row in usable}, request.held_out)
    clips = tuple(
        PlannedClip(number=number, bytes=files[row.file], split=SPLITS[row.file in held_out], **asdict(row))
        for number, row in enumerate(usable)
    )
    unused.sort(key=lambda each: (each.file, each.kind))
    return Plan(request=_plain(request), clips=clips, unused=tuple(unused))


def save_plan(folder: Path, plan: Plan) -> None:
    content = {"format": FORMAT, "digest": plan.digest(), **asdict(plan)}
    write_text(folder / WORK_FOLDER / PLAN_FILE, json.dumps(content, ensure_ascii=False) + "\n")


def read_plan(folder: Path) -> Plan | None:
    """The plan kept in `folder`; None where there is none. ValueError if it is damaged."""
    path = folder / WORK_FOLDER / PLAN_FILE
    if not path.exists():
        return None
    remedy = f"remove {folder} and encode again"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}, not {FORMAT!r}")
        plan = Plan(
            request=content["request"],
            clips=tuple(PlannedClip(**clip) for clip in content["clips"]),
            unused=tuple(UnusedFile(**each) for each in content["unused"]),
            text_identity=content["text_identity"],
        )
        if plan.digest() != content["digest"]:
            raise ValueError("its digest is another: it was altered")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a plan ({type(error).__name__}: {error}); {remedy}") from error
    return plan


def check_same(folder: Path, kept: Plan, wanted: Plan) -> None:
    """ValueError where the folder is being filled, or is full, with something else than was asked for now."""
    remedy = f"encode into another folder, or remove {folder}"
    for name, value in wanted.request.items():
        before = kept.request.get(name)
        if before != value:
            raise ValueError(f"{folder} was begun with {name} {before}, but now it is {value}: {remedy}")
    for before, now in zip(kept.clips, wanted.clips, strict=False):
        if before != now:
            raise ValueError(f"{folder} was begun with clip {_show(before)}, but now it is {_show(now)}: {remedy}")
    if len(kept.clips) != len(wanted.clips):
        counts = len(kept.clips), len(wanted.clips)
        raise ValueError(f"{folder} was begun with {counts[0]} clips, but now there are {counts[1]}: {remedy}")


def _files(videos: Path, rows: Sequence[CaptionRow]) -> dict[str, int]:
    """Name -> bytes of every video and image there is, and of whatever else a row names, by way of links too."""
    found = [path for path in videos.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    # A name that is no UTF-8 can be in no captions, but is told of in the report, which is UTF-8.
    names = {os.fsencode(path.relative_to(videos)).decode("utf-8", "backslashreplace"): path for path in found}
    named = {row.file: videos / row.file for row in rows if row.file not in names}
    names |= {file: path for file, path in named.items() if os.path.isfile(path)}
    return {file: path.stat().st_size for file, path in names.items()}


def _plain(request: EncodingRequest) -> dict[str, Any]:
    # Not where the videos lie, which may change. Through JSON once, so that a plan that was read equals one just made.
    content = {name: value for name, value in asdict(request).items() if name not in ("videos", "captions")}
    return json.loads(json.dumps(content))


def _unused(file: str, kind: str, detail: str) -> UnusedFile:
    refusal = ClipRefused(kind, detail)
    return UnusedFile(file=file, kind=refusal.kind, detail=refusal.detail)


def _held_out(files: set[str], share: float) -> set[str]:
    """The same files whatever else is there, as far as the share allows: those of the smallest hashes.

    Whole files: two clips of one video are too alike to be on both sides. At least one if any is asked for and another
    is left to train on.
    """
    count = min(len(files) - 1, max(1, round(share * len(files)))) if share else 0
    return set(sorted(files, key=lambda file: hashlib.sha256(file.encode()).digest())[:count])


def _show(clip: PlannedClip) -> str:
    return f"{clip.file} ({clip.bytes} bytes, {clip.split}, from {clip.begin:g} s, {clip.caption!r})"
