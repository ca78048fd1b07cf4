"""What a folder is and what is in it: latent shards, a run, one checkpoint, published weights."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ..model import published
from ..model.codecs import load_codec
from ..model.config import ModelConfig
from ..model.cost import count_parameters, parameter_shapes
from ..parallel.config import ParallelConfig
from ..parallel.layers import WHOLE
from ..parallel.mesh import build_mesh
from .checkpoints import FACTS_FILE, CheckpointFolder
from .config_yaml import to_plain
from .data.manifest import MANIFEST_FILE
from .data.shards import ShardDataset
from .sampling import open_checkpoint
from .session import check_codec
from .video import SheetRow, contact_sheet

Facts = dict[str, Any]

CAPTIONS = 12
"""Told and drawn of a split, the most frequent first; a data set may have millions."""


def inspect(path: str | Path) -> Facts:
    """Plain facts, first of all `kind`. ValueError if the folder is none of the kinds, or is damaged."""
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give latent shards, a run, a checkpoint, or published weights")
    if (folder / MANIFEST_FILE).is_file():
        return shards(folder)
    if (folder / FACTS_FILE).is_file():
        return checkpoint(folder)
    if CheckpointFolder(folder).steps():
        return run(folder)
    if any((folder / place).is_file() for place in ("config.json", "transformer/config.json")):
        return published_weights(folder)
    raise ValueError(
        f"{folder} holds no {MANIFEST_FILE} (latent shards), no checkpoints (a run), no {FACTS_FILE} (a checkpoint) "
        "and no config.json (published weights): give a folder that holds one of them"
    )


def shards(folder: Path) -> Facts:
    """Counts, captions, shapes and identities, after every digest was compared."""
    splits = {}
    for split in ShardDataset(folder).manifest.counts():
        dataset = ShardDataset(folder, split)
        dataset.verify()
        captions = {caption: len(samples) for caption, samples in _by_caption(dataset).items()}
        splits[split] = {
            "samples": {str(bucket): count for bucket, count in dataset.buckets.items()},
            "latents": {
                str(bucket): list(dataset.read(samples[:1]).latents_BCFYX.shape[1:])
                for bucket, samples in dataset.samples().items()
            },
            "captions": len(captions),
            "most_frequent": dict(list(captions.items())[:CAPTIONS]),
        }
    check_codec(dataset)
    manifest = dataset.manifest
    return {
        "kind": "latent shards",
        "files": len(manifest.shards),
        "mib": _mib(shard.bytes for shard in manifest.shards),
        "codec": {"kind": manifest.codec_kind, "identity": manifest.codec_identity},
        "text": vars(manifest.text),
        "splits": splits,
    }


def run(folder: Path) -> Facts:
    """Its checkpoints, and the last of them."""
    steps = CheckpointFolder(folder).steps()
    return {"kind": "run", "checkpoints": steps, "last": checkpoint(CheckpointFolder(folder).path(steps[-1]))}


def checkpoint(folder: Path) -> Facts:
    """What it says of itself, after every file's digest was compared with what it was written with."""
    found = open_checkpoint(folder)
    found.verify(build_mesh(ParallelConfig()))
    return {
        "kind": "checkpoint",
        "recipe": found.config.recipe,
        "step": found.facts.step,
        "sample_index": found.facts.sample_index,
        "clip_size": list(found.facts.clip_size),
        "codec": found.facts.codec_identity,
        "text": vars(found.facts.text),
        "kernels": found.facts.kernels,
        "precision": found.config.trainer.precision,
        "model": _model(found.config.model),
        "mib": _mib(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
    }


def published_weights(folder: Path) -> Facts:
    """The model its config.json describes, every tensor's name and shape compared with it, and read once."""
    source = published.open_folder(folder)
    model = _model(source.config) | ({} if source.position_is_written else {"position": None})
    # How weights are to be drawn is not a property of weights that are there.
    model.pop("initialisation")
    identity, dtypes = _contents(source)
    return {
        "kind": "published weights",
        "files": [path.name for path in source.files],
        "mib": _mib(path.stat().st_size for path in source.files),
        "identity": identity,
        "tensors": dtypes,
        "model": model,
    }


def _contents(source: published.PublishedFolder) -> tuple[str, dict[str, int]]:
    """sha256 (hex) over every tensor's name, dtype, shape and bytes, in whichever file it lies; tensors of each dtype.

    One tensor at a time: the model may be larger than memory.
    """
    digest, dtypes = hashlib.sha256(), Counter()
    for name, shape in parameter_shapes(source.config).items():
        tensor = source.tensor(name, WHOLE)
        dtype = str(tensor.dtype).removeprefix("torch.")
        dtypes[dtype] += 1
        digest.update(f"|{name}|{dtype}|{shape}|".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy())
    return digest.hexdigest(), dict(dtypes)


def draw_sheet(folder: Path, picture: Path) -> None:
    """A contact sheet of the training split: of each of the most frequent captions the middle sample, decoded."""
    dataset = ShardDataset(folder)
    codec = load_codec(dataset.codec_folder)
    rows = []
    for caption, samples in list(_by_caption(dataset).items())[:CAPTIONS]:
        latents_BCFYX = dataset.read([samples[len(samples) // 2]]).latents_BCFYX
        rows.append(SheetRow(caption=caption, videos={"decoded latents": codec.decode(latents_BCFYX)[0]}))
    contact_sheet(picture, rows)


def _by_caption(dataset: ShardDataset) -> dict[str, list[int]]:
    """Caption -> its samples, the most frequent caption first."""
    found: dict[str, list[int]] = {}
    for samples in dataset.samples().values():
        for sample in samples:
            found.setdefault(dataset.facts(sample)["caption"], []).append(sample)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def _mib(sizes: Iterable[int]) -> float:
    return round(sum(sizes) / 2**20, 1)


def _model(config: ModelConfig) -> Facts:
    return {**to_plain(config), "parameters": count_parameters(config)}
