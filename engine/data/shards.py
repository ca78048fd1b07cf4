"""Reads latent shards: random access to any sample, checked on every read.

A shard is a tar file in webdataset's layout (KEY.latents.npy, KEY.tokens.npy, KEY.pooled.npy, KEY.json; one key's
members together), so webdataset reads it too; the manifest's byte offsets take this reader to a sample with one pread.
"""

import io
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as numpy_format
from torch import Tensor

from ...model.clip_size import latent_size
from ...model.weight_files import read_tensors
from ...parallel.reading import file_sha256, parse_json, shown
from .manifest import SPLITS, UNVALIDATED, Bucket, Manifest, SampleEntry, ShardEntry, read_manifest

REMEDY = "restore the file or encode the data again"


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples of one bucket, as CPU tensors in the order they were asked for."""

    latents_BCFYX: Tensor
    """float32, normalised (see `Codec`)."""
    tokens_BTW: Tensor
    """float32 text features, W being the text encoder's width."""
    pooled_BW: Tensor
    sample_B: Tensor
    """int64 sample ids, which key all random quantities of a sample."""
    captions: tuple[str, ...]


class ShardDataset:
    """One split of a shard folder. ValueError names the file, what was found and what was expected.

    Opening checks the manifest and every shard's size; `read` checks each sample's crc32; `verify` reads everything.
    """

    def __init__(self, folder: str | Path, split: str = "train"):
        self.folder, self.split = Path(folder), split
        self.manifest: Manifest = read_manifest(self.folder)
        self._places: dict[int, tuple[ShardEntry, SampleEntry]] = {}
        self._files: dict[str, io.FileIO] = {}
        for shard in self.manifest.shards:
            if shard.split == split:
                self._check_size(shard)
                self._places.update({sample.sample: (shard, sample) for sample in shard.samples})
        if not self._places:
            known = ", ".join(self.manifest.counts())
            remedy = f"encode more videos, or train with {UNVALIDATED}" if split == SPLITS[1] else REMEDY
            raise ValueError(
                f"{self.folder}: found no sample of split {split!r}; expected one of: {known or 'none'}; {remedy}"
            )

    @property
    def codec_identity(self) -> str:
        return self.manifest.codec_identity

    @property
    def codec_folder(self) -> Path:
        """What `load_codec` reads."""
        return self.folder / self.manifest.codec_folder

    @property
    def buckets(self) -> dict[Bucket, int]:
        """Bucket -> number of samples, in a fixed order."""
        return {bucket: len(samples) for bucket, samples in self.samples().items()}

    def samples(self) -> dict[Bucket, tuple[int, ...]]:
        """Bucket -> sample ids, ascending: what `Sampler` draws from."""
        samples: dict[Bucket, list[int]] = {}
        for sample in sorted(self._places):
            samples.setdefault(self._places[sample][0].bucket, []).append(sample)
        return {bucket: tuple(samples[bucket]) for bucket in sorted(samples)}

    def empty_caption(self) -> tuple[Tensor, Tensor]:
        """tokens_TW and pooled_W of the empty caption: what a dropped caption and guidance use."""
        path = self.folder / self.manifest.empty_caption.file
        self._check_digest(path, self.manifest.empty_caption.sha256)
        tensors, text = read_tensors(path), self.manifest.text
        expected = {"tokens": (torch.float32, text.tokens, text.width), "pooled": (torch.float32, text.pooled_width)}
        found = {name: (tensor.dtype, *tensor.shape) for name, tensor in tensors.items()}
        if found != expected:
            raise ValueError(f"{path}: found tensors {shown(found)}; expected {expected}: {REMEDY}")
        return tensors["tokens"], tensors["pooled"]

    def read(self, sample_ids: list[int] | Tensor) -> Batch:
        """The samples' tensors; they must share one bucket."""
        ids = [int(sample) for sample in sample_ids]
        unknown = [sample for sample in ids if sample not in self._places]
        if unknown or not ids:
            raise ValueError(
                f"{self.folder}: asked for samples {unknown or ids} of split {self.split!r}; expected some of the "
                f"{len(self._places)} ids its manifest lists"
            )
        found = {self._places[sample][0].bucket for sample in ids}
        if len(found) > 1:
            raise ValueError(
                f"samples {ids} lie in buckets {', '.join(map(str, sorted(found)))}; a batch takes one bucket"
            )
        rows = [self._read_one(sample) for sample in ids]
        return Batch(
            latents_BCFYX=torch.stack([row["latents.npy"] for row in rows]),
            tokens_BTW=torch.stack([row["tokens.npy"] for row in rows]),
            pooled_BW=torch.stack([row["pooled.npy"] for row in rows]),
            sample_B=torch.tensor(ids, dtype=torch.int64),
            captions=tuple(row["json"]["caption"] for row in rows),
        )

    def facts(self, sample: int) -> dict:
        """A sample's json member: caption, clip, first frame, sample id."""
        return self._read_one(sample)["json"]

    def verify(self) -> None:
        """Compares every file of this split with the manifest's digests; reads all bytes once."""
        for shard in {id(shard): shard for shard, _ in self._places.values()}.values():
            self._check_digest(self.folder / shard.file, shard.sha256)
        self.empty_caption()

    def _check_size(self, shard: ShardEntry) -> None:
        path = self.folder / shard.file
        found = path.stat().st_size if path.is_file() else "no file"
        if found != shard.bytes:
            raise ValueError(f"{path}: found {found}; expected {shard.bytes} bytes: {REMEDY}")

    def _check_digest(self, path: Path, expected: str) -> None:
        found = file_sha256(path) if path.is_file() else "no file"
        if found != expected:
            raise ValueError(f"{path}: found sha256 {found}; expected {expected}: {REMEDY}")

    def _pread(self, path: Path, begin: int, end: int) -> bytes:
        try:
            # Kept open: on a parallel file system opening costs more than reading. pread has no shared position, so
            # loader threads and forked ranks may share the descriptor.
            file = self._files.get(str(path)) or self._files.setdefault(str(path), io.FileIO(path))
            return os.pread(file.fileno(), end - begin, begin)
        except OSError as error:
            raise ValueError(f"{path}: found {error}; expected bytes {begin} to {end}: {REMEDY}") from error

    def _read_one(self, sample: int) -> dict:
        shard, place = self._places[sample]
        path = self.folder / shard.file
        payload = self._pread(path, place.begin, place.end)
        if len(payload) != place.end - place.begin:
            raise ValueError(
                f"{path}: found {len(payload)} bytes at {place.begin}; expected {place.end - place.begin} for sample "
                f"{sample}: {REMEDY}"
            )
        found = zlib.crc32(payload)
        if found != place.crc32:
            raise ValueError(
                f"{path}: found crc32 {found:08x}; expected {place.crc32:08x} for sample {sample}: {REMEDY}"
            )
        parts = {
            name: payload[first - place.begin : first - place.begin + size]
            for name, (first, size) in place.members.items()
        }
        try:
            row = {name: _facts(data) if name == "json" else _array(data) for name, data in parts.items()}
        except ValueError as error:
            raise ValueError(f"{path}: sample {sample} is none ({error}): {REMEDY}") from error
        self._check_shapes(path, sample, shard.bucket, row)
        return row

    def _check_shapes(self, path: Path, sample: int, bucket: Bucket, row: dict) -> None:
        text = self.manifest.text
        # The codec fixes the channels; the bucket and the text encoder fix the rest.
        expected = {
            "latents.npy": (*row["latents.npy"].shape[:1], *latent_size(*bucket)),
            "tokens.npy": (text.tokens, text.width),
            "pooled.npy": (text.pooled_width,),
        }
        found = {name: tuple(row[name].shape) for name in expected}
        if found != expected:
            raise ValueError(f"{path}: found shapes {found}; expected {expected} for sample {sample}: {REMEDY}")


def _facts(data: bytes) -> dict:
    """A sample's json member. ValueError unless it is a JSON object with a caption."""
    facts = parse_json(data)
    if not isinstance(facts, dict) or not isinstance(facts.get("caption"), str):
        raise ValueError(f"its json is {shown(facts)}; expected an object with a caption")
    return facts


def _array(data: bytes) -> Tensor:
    """A float32 array in numpy's own format. ValueError for any other content."""
    stream = io.BytesIO(data)
    if numpy_format.read_magic(stream) != (1, 0):
        raise ValueError("its array is not of version 1.0 of numpy's format")
    # The header is a Python literal, not code. numpy's own reader would make room for whatever it says; a shard may
    # come from anywhere, so what it says is compared with what is there first. A pickle would be of another type.
    shape, is_fortran, dtype = numpy_format.read_array_header_1_0(stream)
    rest = data[stream.tell() :]
    if dtype != np.dtype("<f4") or is_fortran or math.prod(shape) * dtype.itemsize != len(rest):
        raise ValueError(f"its array says {dtype} {shape} and has {len(rest)} bytes; expected float32, row by row")
    return torch.from_numpy(np.frombuffer(rest, dtype).reshape(shape).copy())
