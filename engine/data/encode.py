"""Clips to latent shards: windows -> codec fitted on the training ones -> latents and text features -> shards."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from ...model.codecs.codec import Codec
from ...model.codecs.pca import PCACodec
from ...model.codecs.pca_fit import fit
from ...model.text.text import TextEncoder
from ..progress import Progress
from .clips import ClipManifest
from .manifest import MANIFEST_FILE, SPLITS, Manifest, read_manifest
from .shard_writer import Sample, ShardWriter
from .shards import ShardDataset
from .windows import Window, count_windows, read_windows

ENCODING = "2"
"""Raised whenever the same clips, codec kind and text encoder would give other shards, so that old ones are redone."""


def source_of(clips: ClipManifest, text_kind: str) -> str:
    """sha256 (hex) over everything that decides the shards but the code: recorded in them to know them again."""
    content = json.dumps([ENCODING, asdict(clips), PCACodec.kind, text_kind], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def is_encoded(folder: Path, source: str) -> bool:
    """Whether `folder` holds complete, undamaged shards of this source."""
    if not (Path(folder) / MANIFEST_FILE).is_file():
        return False
    try:
        manifest = read_manifest(folder)
        if manifest.source != source:
            return False
        for split in manifest.counts():
            ShardDataset(folder, split).verify()
    except ValueError:
        return False
    return True


def encode_clips(clips: ClipManifest, clip_folder: Path, folder: Path, text: TextEncoder) -> Manifest:
    """Encodes every window of every clip and writes the shards of all splits to `folder`.

    Decodes the clips three times (twice to fit, once to encode) rather than keep their windows: the small frames of
    one clip are in memory, however many clips there are.
    """
    passes = iter(("fitting bases", "fitting decoder"))
    codec = fit(lambda: _training_pixels(clips, clip_folder, next(passes)))
    captions = list(clips.captions())
    tokens_BTW, pooled_BW = text.encode(captions)
    writer = ShardWriter(folder)
    for window in _progress(clips, clip_folder, "encoding"):
        row = captions.index(window.caption)
        writer.add(window.split, clips.bucket, _sample(window, codec, tokens_BTW[row], pooled_BW[row]))
    return writer.close(codec, text, source_of(clips, text.kind))


def codec_psnr(codec: Codec, pixels_3FYX: Tensor) -> float:
    """Peak signal-to-noise ratio of decode(encode(pixels)) over one window, in dB.

    10 log10(1 / mean squared error) over all frames, pixels and colours, both sides scaled to [0, 1] and the decoded
    one clamped to it; an error below 1e-10 counts as 1e-10. `codec_psnr_db` is the mean of this over training windows.
    """
    decoded_B3FYX = codec.decode(codec.encode(pixels_3FYX[None]))
    error = ((decoded_B3FYX[0] - pixels_3FYX) / 2).double().square().mean()
    return float(-10 * torch.log10(error.clamp_min(1e-10)))


def mean_codec_psnr(folder: Path, split: str = "train") -> float | None:
    """`codec_psnr_db` of a shard folder, from what encoding recorded beside its samples; None: beside none."""
    dataset = ShardDataset(folder, split)
    facts = (dataset.facts(sample) for ids in dataset.samples().values() for sample in ids)
    values = [fact["codec_psnr_db"] for fact in facts if "codec_psnr_db" in fact]
    return sum(values) / len(values) if values else None


def _sample(window: Window, codec: Codec, tokens_TW: Tensor, pooled_W: Tensor) -> Sample:
    pixels_3FYX = window.pixels_3FYX
    return Sample(
        sample=window.sample,
        latents_CFYX=codec.encode(pixels_3FYX[None])[0],
        tokens_TW=tokens_TW,
        pooled_W=pooled_W,
        facts={
            "caption": window.caption,
            "clip": window.clip,
            "first_frame": window.first_frame,
            "codec_psnr_db": codec_psnr(codec, pixels_3FYX),
        },
    )


def _training_pixels(clips: ClipManifest, clip_folder: Path, purpose: str) -> Iterator[Tensor]:
    for window in _progress(clips, clip_folder, purpose):
        if window.split == SPLITS[0]:
            yield window.pixels_3FYX


def _progress(clips: ClipManifest, clip_folder: Path, purpose: str) -> Iterator[Window]:
    progress = Progress(purpose, total=count_windows(clips), unit="window")
    for done, window in enumerate(read_windows(clips, clip_folder), start=1):
        yield window
        progress.advance_to(done)
    progress.close()
