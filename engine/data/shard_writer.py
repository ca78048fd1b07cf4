"""Writes latent shards: tar files in webdataset's layout, each of one split and one bucket, and their manifest."""

import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.torch import save
from torch import Tensor

from ...model.codecs.codec import Codec
from ...model.text.text import TextEncoder
from ...parallel.durable import sync, sync_tree
from ...parallel.reading import file_sha256
from .manifest import (
    CODEC_FOLDER,
    MANIFEST_FILE,
    Bucket,
    FileEntry,
    Manifest,
    SampleEntry,
    ShardEntry,
    TextEntry,
    write_manifest,
)

EMPTY_CAPTION_FILE = "empty_caption.safetensors"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One encoded window."""

    sample: int
    """Unique over all splits, below 2^32: it is a word of the Philox counter."""
    latents_CFYX: Tensor
    tokens_TW: Tensor
    pooled_W: Tensor
    facts: dict
    """JSON values beside the tensors: caption, clip, first frame."""


class ShardWriter:
    """Writes samples to `folder`, at most `samples_per_shard` a file; `close` publishes the manifest.

    The same samples in the same order give the same bytes. An earlier manifest is removed first, so that a folder with
    a half-written shard never looks complete.
    """

    def __init__(self, folder: Path, *, samples_per_shard: int = 32):
        if samples_per_shard < 1:
            raise ValueError(f"samples per shard is {samples_per_shard}; it must be at least 1")
        self.folder, self.samples_per_shard = Path(folder), samples_per_shard
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / MANIFEST_FILE).unlink(missing_ok=True)
        for stale in self.folder.glob("*.tar"):
            stale.unlink()
        self._shards: list[ShardEntry] = []
        self._open: dict[tuple[str, Bucket], Shard] = {}
        self._written: set[int] = set()

    def add(self, split: str, bucket: Bucket, sample: Sample) -> None:
        """Appends one sample to the open shard of its split and bucket."""
        if sample.sample in self._written or not 0 <= sample.sample < 2**32:
            raise ValueError(f"sample id {sample.sample} is taken or outside [0, 2^32); give every window its own id")
        self._written.add(sample.sample)
        key = (split, bucket)
        if key not in self._open:
            number = sum((shard.split, shard.bucket) == key for shard in self._shards)
            self._open[key] = Shard(self.folder / f"{split}-{bucket}-{number:05d}.tar")
        self._open[key].add(sample)
        if len(self._open[key].samples) == self.samples_per_shard:
            self._finish(key)

    def close(self, codec: Codec, text: TextEncoder, source: str = "") -> Manifest:
        """Finishes the shards, saves codec and empty caption beside them, and publishes the manifest."""
        for key in list(self._open):
            self._finish(key)
        codec.save(self.folder / CODEC_FOLDER)
        return publish(self.folder, self._shards, codec, text, source)

    def _finish(self, key: tuple[str, Bucket]) -> None:
        self._shards.append(self._open.pop(key).finish(*key))


def publish(folder: Path, shards: Iterable[ShardEntry], codec: Codec, text: TextEncoder, source: str = "") -> Manifest:
    """Writes the empty caption beside finished shards and a saved codec, then the manifest, which makes it whole.

    All of them are on disk before it.
    """
    tokens_BTW, pooled_BW = text.encode([""])
    empty = folder / EMPTY_CAPTION_FILE
    # Not safetensors' save_file: that makes files only their owner may read, and data folders are shared.
    empty.write_bytes(save({"tokens": tokens_BTW[0].contiguous(), "pooled": pooled_BW[0].contiguous()}))
    sync(empty)
    sync_tree(folder / CODEC_FOLDER)
    manifest = Manifest(
        source=source,
        codec_kind=codec.kind,
        codec_identity=codec.identity,
        codec_folder=CODEC_FOLDER,
        text=entry_of(text),
        empty_caption=FileEntry(file=EMPTY_CAPTION_FILE, sha256=file_sha256(empty)),
        shards=tuple(sorted(shards, key=lambda shard: shard.file)),
    )
    write_manifest(folder, manifest)
    return manifest


def entry_of(text: TextEncoder) -> TextEntry:
    return TextEntry(
        kind=text.kind, identity=text.identity, tokens=text.tokens, width=text.width, pooled_width=text.pooled_width
    )


class Shard:
    """An open tar file and the places of what was written to it.

    `samples` are those that an interrupted process wrote before: whatever the file has beyond them is cut off.
    """

    def __init__(self, path: Path, samples: Iterable[SampleEntry] = ()):
        self.path, self.samples = path, list(samples)
        self._end = self.samples[-1].end if self.samples else 0
        self._file = open(path, "r+b" if self.samples else "wb")  # noqa: SIM115 - open until the shard is full
        self._file.truncate(self._end)
        self._file.seek(self._end)

    def add(self, sample: Sample) -> SampleEntry:
        payloads = {
            "latents.npy": _npy(sample.latents_CFYX),
            "tokens.npy": _npy(sample.tokens_TW),
            "pooled.npy": _npy(sample.pooled_W),
            "json": json.dumps({"sample": sample.sample, **sample.facts}, ensure_ascii=False).encode(),
        }
        begin, pieces, members = self._end, [], {}
        for name, payload in payloads.items():
            # TarInfo's defaults (owner 0, time 0) keep the bytes a function of the content.
            header = tarfile.TarInfo(f"{sample.sample:010d}.{name}")
            header.size = len(payload)
            members[name] = (self._end + tarfile.BLOCKSIZE, len(payload))
            pieces += [header.tobuf(tarfile.USTAR_FORMAT), payload, bytes(-len(payload) % tarfile.BLOCKSIZE)]
            self._end += sum(map(len, pieces[-3:]))
        written = b"".join(pieces)
        self._file.write(written)
        entry = SampleEntry(
            sample=sample.sample, begin=begin, end=self._end, crc32=zlib.crc32(written), members=members
        )
        self.samples.append(entry)
        return entry

    def sync(self) -> None:
        """Waits until everything added is on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self, split: str, bucket: Bucket) -> ShardEntry:
        """Ends the tar file and returns its place in the manifest."""
        ending = 2 * tarfile.BLOCKSIZE  # what tar takes for the end; and a file is a whole number of records
        self._file.write(bytes(ending + -(self._end + ending) % tarfile.RECORDSIZE))
        self.sync()
        self.close()
        return ShardEntry(
            file=self.path.name,
            split=split,
            bucket=bucket,
            bytes=self.path.stat().st_size,
            sha256=file_sha256(self.path),
            samples=tuple(self.samples),
        )

    def close(self) -> None:
        """Leaves the file as it stands, to be gone on with."""
        self._file.close()


def _npy(tensor: Tensor) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, tensor.detach().float().cpu().contiguous().numpy(), allow_pickle=False)
    return buffer.getvalue()
