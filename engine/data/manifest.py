"""The shard folder's manifest: what lies where, with which digest, made by which codec and text encoder.

manifest.json is written last and atomically, so a folder that has one is complete. Byte offsets in it give random
access by pread: training never scans a tar file.
"""

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from ...parallel.durable import write_text

FORMAT = "contentv-shards-1"

MANIFEST_FILE = "manifest.json"
SPLITS = ("train", "held_out")
CODEC_FOLDER = "codec"
"""Subfolder with the codec itself, of shards as of a checkpoint."""


class Bucket(NamedTuple):
    """The size in pixels that all samples of a shard, and of a global batch, share."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


@dataclass(frozen=True, kw_only=True)
class SampleEntry:
    """One sample's place in its shard: members back to back in bytes [begin, end) of the file."""

    sample: int
    begin: int
    end: int
    crc32: int
    """zlib.crc32 of bytes [begin, end), checked at every read."""
    members: dict[str, tuple[int, int]]
    """Member's extension ("latents.npy") -> offset of its data in the file, size in bytes."""


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One tar file: samples of one split and one bucket."""

    file: str
    split: str
    bucket: Bucket
    bytes: int
    sha256: str
    samples: tuple[SampleEntry, ...]


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A file beside the shards, by name and sha256."""

    file: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class TextEntry:
    """The text encoder that made the embeddings: enough to load it again and to refuse another."""

    kind: str
    identity: str
    tokens: int
    width: int
    pooled_width: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What manifest.json says."""

    source: str
    """sha256 over what was encoded and how: equal sources need no second encoding."""
    codec_kind: str
    codec_identity: str
    codec_folder: str
    text: TextEntry
    empty_caption: FileEntry
    shards: tuple[ShardEntry, ...]

    def counts(self) -> dict[str, dict[str, int]]:
        """Samples per split and bucket."""
        counts: dict[str, Counter] = {}
        for shard in self.shards:
            counts.setdefault(shard.split, Counter())[str(shard.bucket)] += len(shard.samples)
        return {split: dict(sorted(buckets.items())) for split, buckets in sorted(counts.items())}

    def to_json(self) -> dict:
        """The manifest as plain JSON values, its digest included."""
        content = {"format": FORMAT, "counts": self.counts(), **asdict(self)}
        # Through JSON once, so that tuples are lists as they will be when the digest is checked on reading.
        content = json.loads(json.dumps(content))
        return {**content, "digest": digest_of(content)}


def digest_of(content: dict) -> str:
    """sha256 (hex) of the manifest's content without its digest, in canonical JSON."""
    plain = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Publishes the manifest, whole or not at all."""
    write_text(Path(folder) / MANIFEST_FILE, json.dumps(manifest.to_json(), indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a shard folder; ValueError naming the file, what was found and what was expected."""
    path = Path(folder) / MANIFEST_FILE
    remedy = "encode the data again (`contentv data RECIPE`) or give another data folder"
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: found {type(error).__name__} ({error}); expected a complete manifest: {remedy}"
        ) from error
    found = content.get("format") if isinstance(content, dict) else type(content).__name__
    if found != FORMAT:
        raise ValueError(f"{path}: found format {found!r}; expected {FORMAT!r}: {remedy}")
    if content.get("digest") != digest_of(content):
        raise ValueError(f"{path}: found digest {digest_of(content)}; expected {content.get('digest')}: {remedy}")
    try:
        return _from_json(content)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: found {type(error).__name__} ({error}); expected the fields of {FORMAT}: {remedy}"
        ) from error


def _from_json(content: dict) -> Manifest:
    shards = []
    for shard in content["shards"]:
        samples = tuple(
            SampleEntry(**{**sample, "members": {name: tuple(place) for name, place in sample["members"].items()}})
            for sample in shard["samples"]
        )
        shards.append(ShardEntry(**{**shard, "bucket": Bucket(*shard["bucket"]), "samples": samples}))
    fields = {key: value for key, value in content.items() if key not in ("format", "counts", "digest")}
    fields["text"] = TextEntry(**fields["text"])
    fields["empty_caption"] = FileEntry(**fields["empty_caption"])
    return Manifest(**{**fields, "shards": tuple(shards)})
