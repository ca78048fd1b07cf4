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
from ...parallel.reading import read_json, shown
from ..plain import build, mistake

FORMAT = "contentv-shards-1"

LIMIT = 2**34
"""Bytes of a manifest; a million samples take half of 2^30."""

REMEDY = "encode the data again (`contentv data` or `contentv encode`) or give another data folder"

MEMBERS = frozenset(("latents.npy", "tokens.npy", "pooled.npy", "json"))
"""Of every sample: its key is followed by each of these."""

WIDEST = 2**24
"""Tokens, or features of one: beyond it, no text encoder is."""

MANIFEST_FILE = "manifest.json"
SPLITS = ("train", "held_out")
UNVALIDATED = "--trainer.validate-every 0"
"""How to train where nothing is held out."""
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

    def __post_init__(self):
        for name in ("tokens", "width", "pooled_width"):
            if not 1 <= getattr(self, name) <= WIDEST:
                raise ValueError(f"text.{name} is {getattr(self, name)}; it must be from 1 to {WIDEST}")


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
        splits = sorted({shard.split for shard in self.shards})
        named = {split: ((str(bucket), count) for bucket, count in self.buckets(split).items()) for split in splits}
        return {split: dict(sorted(counts)) for split, counts in named.items()}

    def buckets(self, split: str) -> Counter[Bucket]:
        """Samples of each bucket in a split."""
        found: Counter[Bucket] = Counter()
        for shard in self.shards:
            if shard.split == split:
                found[shard.bucket] += len(shard.samples)
        return found

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


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Publishes the manifest, whole or not at all."""
    write_text(Path(folder) / MANIFEST_FILE, json.dumps(manifest.to_json(), indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a shard folder, its digest and every field checked.

    Raises:
        ValueError: names the file, what was found, what was expected and what to do.
    """
    path = Path(folder) / MANIFEST_FILE
    try:
        content = read_json(path, LIMIT)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: found {type(error).__name__} ({error}); expected a complete manifest: {REMEDY}"
        ) from error
    found = content.get("format") if isinstance(content, dict) else type(content).__name__
    if found != FORMAT:
        raise ValueError(f"{path}: found format {shown(found)}; expected {FORMAT!r}: {REMEDY}")
    if content.get("digest") != digest_of(content):
        expected = shown(content.get("digest"))
        raise ValueError(f"{path}: found digest {digest_of(content)}; expected {expected}: {REMEDY}")
    plain = {key: value for key, value in content.items() if key not in ("format", "counts", "digest")}
    try:
        return _checked(build(Manifest, plain, "", str(path)), str(path))
    except ValueError as error:
        raise ValueError(f"{error}: {REMEDY}") from error


def _checked(manifest: Manifest, source: str) -> Manifest:
    """What no single field can tell: names stay in the folder, places inside their files, ids are there once."""
    shards = [f"shards[{index}].file" for index in range(len(manifest.shards))]
    files = dict(zip(shards, (shard.file for shard in manifest.shards), strict=True))
    others = {"codec_folder": manifest.codec_folder, "empty_caption.file": manifest.empty_caption.file}
    for key, name in {**files, **others}.items():
        # A manifest may come from anywhere: it must not lead out of its folder.
        if not name or name in (".", "..") or set(name) & set("/\\\0"):
            raise mistake(source, key, name, "the plain name of something in this folder")
    if len(set(files.values())) < len(files):
        raise ValueError(f"{source}: two shards have one file name")
    seen: set[int] = set()
    for key, shard in zip(shards, manifest.shards, strict=True):
        if min(shard.bucket) < 1:
            raise mistake(source, key, list(shard.bucket), "of a bucket of sizes above 0")
        for sample in shard.samples:
            places = [(sample.begin, sample.end, shard.bytes)]
            places += [(first, first + size, sample.end) for first, size in sample.members.values()]
            if not all(0 <= first <= last <= end for first, last, end in places) or any(
                first < sample.begin for first, _ in sample.members.values()
            ):
                raise mistake(source, f"{key}: sample {sample.sample}", sample, "inside the file, its members in it")
            if not 0 <= sample.sample < 2**32 or sample.sample in seen:
                raise mistake(source, f"{key}: a sample id", sample.sample, "below 2^32, and there once")
            if sample.members.keys() != MEMBERS:
                raise mistake(source, f"{key}: members", list(sample.members), f"exactly {', '.join(sorted(MEMBERS))}")
            seen.add(sample.sample)
    return manifest
