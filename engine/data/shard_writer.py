"""Writes latent shards: tar files in webdataset's layout, each of one split and one bucket, and their manifest."""

import io
import json
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.torch import save
from torch import Tensor

from ...model.codecs.codec import Codec
from ...model.text.text import TextEncoder
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
        self._open: dict[tuple[str, Bucket], _Shard] = {}
        self._written: set[int] = set()

    def add(self, split: str, bucket: Bucket, sample: Sample) -> None:
        """Appends one sample to the open shard of its split and bucket."""
        if sample.sample in self._written or not 0 <= sample.sample < 2**32:
            raise ValueError(f"sample id {sample.sample} is taken or outside [0, 2^32); give every window its own id")
        self._written.add(sample.sample)
        key = (split, bucket)
        if key not in self._open:
            number = sum((shard.split, shard.bucket) == key for shard in self._shards)
            self._open[key] = _Shard(self.folder / f"{split}-{bucket}-{number:05d}.tar")
        self._open[key].add(sample)
        if len(self._open[key].samples) == self.samples_per_shard:
            self._finish(key)

    def close(self, codec: Codec, text: TextEncoder, source: str = "") -> Manifest:
        """Finishes the shards, saves codec and empty caption beside them, and publishes the manifest."""
        for key in list(self._open):
            self._finish(key)
        codec.save(self.folder / CODEC_FOLDER)
        tokens_BTW, pooled_BW = text.encode([""])
        empty = self.folder / EMPTY_CAPTION_FILE
        # Not safetensors' save_file: that makes files only their owner may read, and data folders are shared.
        empty.write_bytes(save({"tokens": tokens_BTW[0].contiguous(), "pooled": pooled_BW[0].contiguous()}))
        manifest = Manifest(
            source=source,
            codec_kind=codec.kind,
            codec_identity=codec.identity,
            codec_folder=CODEC_FOLDER,
            text=TextEntry(
                kind=text.kind,
                identity=text.identity,
                tokens=text.tokens,
                width=text.width,
                pooled_width=text.pooled_width,
            ),
            empty_caption=FileEntry(file=EMPTY_CAPTION_FILE, sha256=file_sha256(empty)),
            shards=tuple(sorted(self._shards, key=lambda shard: shard.file)),
        )
        write_manifest(self.folder, manifest)
        return manifest

    def _finish(self, key: tuple[str, Bucket]) -> None:
        shard = self._open.pop(key)
        shard.tar.close()
        self._shards.append(
            ShardEntry(
                file=shard.path.name,
                split=key[0],
                bucket=key[1],
                bytes=shard.path.stat().st_size,
                sha256=file_sha256(shard.path),
                samples=tuple(shard.samples),
            )
        )


class _Shard:
    """An open tar file and the places of what was written to it."""

    def __init__(self, path: Path):
        self.path = path
        self.tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - open until the shard is full
        self.samples: list[SampleEntry] = []

    def add(self, sample: Sample) -> None:
        payloads = {
            "latents.npy": _npy(sample.latents_CFYX),
            "tokens.npy": _npy(sample.tokens_TW),
            "pooled.npy": _npy(sample.pooled_W),
            "json": json.dumps({"sample": sample.sample, **sample.facts}, ensure_ascii=False).encode(),
        }
        begin = self.tar.offset
        members = {}
        for name, payload in payloads.items():
            # TarInfo's defaults (owner 0, time 0) keep the bytes a function of the content.
            header = tarfile.TarInfo(f"{sample.sample:010d}.{name}")
            header.size = len(payload)
            members[name] = (self.tar.offset + tarfile.BLOCKSIZE, len(payload))
            self.tar.addfile(header, io.BytesIO(payload))
        self.tar.fileobj.flush()
        with open(self.path, "rb") as written:
            written.seek(begin)
            crc32 = zlib.crc32(written.read(self.tar.offset - begin))
        self.samples.append(
            SampleEntry(sample=sample.sample, begin=begin, end=self.tar.offset, crc32=crc32, members=members)
        )


def _npy(tensor: Tensor) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, tensor.detach().float().cpu().contiguous().numpy(), allow_pickle=False)
    return buffer.getvalue()
