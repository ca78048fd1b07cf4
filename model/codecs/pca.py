"""The embedded codec: principal components of pixel blocks, fitted on the clips themselves, no weights to fetch.

Encoder: two bases, one for the first frame (blocks of 1 x 8 x 8 pixels x 3 colours = 192 values), one for every later
group of four frames (4 x 8 x 8 x 3 = 768 values); a block becomes its 16 leading principal components divided by their
standard deviations (whitening), so latents have zero mean and unit variance over the training windows. Linear, exactly
causal. Source: Jolliffe, Principal Component Analysis, 2nd ed., chapter 3 and section 6.1.

Decoder: ridge regression from the 3 x 3 latents around a block, and rectified random features of them, to its pixels.
The neighbours tell edges from texture and take the seams away: about 3.5 dB above the bases' transpose. It looks at one
latent frame at a time, so decoding is causal too. Source: Rahimi and Recht, Weighted Sums of Random Kitchen Sinks,
NeurIPS 2008. `pca_fit.py` fits both.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..clip_size import FRAMES_PER_LATENT, PIXELS_PER_LATENT, latent_size
from .codec import identity_of, load_tensors, save_tensors

CHANNELS = 16

NEIGHBOURHOOD = 3
"""Rows, and columns, of latents the decoder sees around a block; beyond the border the nearest latent is repeated."""

RANDOM_FEATURES = 1024

PARTS = {"first": 1, "later": FRAMES_PER_LATENT}
"""The two kinds of block and their frames."""


class PCACodec:
    """Implements `Codec`. With N values in a block, K = 3 x 3 x 16 neighbouring latents and R random features:

    latent_C = (block_N - mean_N) analysis_NC
    block_N = [neighbours_K, relu(neighbours_K weight_KR + bias_R), 1] synthesis

    All tensors are float32; mean, analysis and synthesis exist once for `first` and once for `later`.
    """

    kind = "pca"
    channels = CHANNELS

    def __init__(self, tensors: dict[str, Tensor]):
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if found != expected_shapes():
            raise ValueError(f"a pca codec has tensors {found}; expected {expected_shapes()}: fit or load it again")
        self.tensors = {name: tensor.detach().float() for name, tensor in tensors.items()}
        self.identity = identity_of(self.kind, self.tensors)

    @classmethod
    def load(cls, folder: Path) -> "PCACodec":
        """Reads what `save` wrote; ValueError if it is absent, broken or altered."""
        _, tensors = load_tensors(folder)
        return cls(tensors)

    def encode(self, pixels_B3FYX: Tensor) -> Tensor:
        """See `Codec.encode`."""
        latent_size(*pixels_B3FYX.shape[2:])
        latents = [self._project(part, pixels) for part, pixels in split_parts(pixels_B3FYX)]
        return torch.cat(latents, dim=1).permute(0, 4, 1, 2, 3).contiguous()

    def decode(self, latents_BCFYX: Tensor) -> Tensor:
        """See `Codec.decode`."""
        if latents_BCFYX.dim() != 5 or latents_BCFYX.shape[1] != CHANNELS or not latents_BCFYX.shape[2]:
            raise ValueError(f"latents are {tuple(latents_BCFYX.shape)}; expected [B, {CHANNELS}, 1 + k, Y, X]")
        weight, bias = self._tensor("features.weight", latents_BCFYX), self._tensor("features.bias", latents_BCFYX)
        pixels = []
        for part, latents in split_parts(latents_BCFYX.float()):
            blocks = decoder_input(latents, weight, bias) @ self._tensor(f"{part}.synthesis", latents)
            pixels.append(from_blocks(blocks, PARTS[part]))
        return torch.cat(pixels, dim=2).clamp_(-1, 1)

    def save(self, folder: Path) -> None:
        """See `Codec.save`."""
        save_tensors(folder, self.kind, self.tensors)

    def _tensor(self, name: str, like: Tensor) -> Tensor:
        return self.tensors[name].to(like.device)

    def _project(self, part: str, pixels_B3FYX: Tensor) -> Tensor:
        blocks = to_blocks(pixels_B3FYX.float(), PARTS[part])
        return (blocks - self._tensor(f"{part}.mean", blocks)) @ self._tensor(f"{part}.analysis", blocks)


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a `PCACodec`."""
    neighbours = NEIGHBOURHOOD**2 * CHANNELS
    shapes = {"features.weight": (neighbours, RANDOM_FEATURES), "features.bias": (RANDOM_FEATURES,)}
    for part, frames in PARTS.items():
        values = 3 * frames * PIXELS_PER_LATENT**2
        shapes[f"{part}.mean"] = (values,)
        shapes[f"{part}.analysis"] = (values, CHANNELS)
        shapes[f"{part}.synthesis"] = (neighbours + RANDOM_FEATURES + 1, values)
    return shapes


def split_parts(video_BCFYX: Tensor) -> list[tuple[str, Tensor]]:
    """The first frame and the later ones, of pixels or latents; an image has no later ones."""
    parts = [("first", video_BCFYX[:, :, :1]), ("later", video_BCFYX[:, :, 1:])]
    return [(part, video) for part, video in parts if video.shape[2]]


def to_blocks(pixels_B3FYX: Tensor, frames: int) -> Tensor:
    """Non-overlapping blocks of `frames` x 8 x 8 pixels, flattened (colour, frame, row, column): [B, F', Y', X', N]."""
    batch, colours, length, height, width = pixels_B3FYX.shape
    side = PIXELS_PER_LATENT
    blocks = pixels_B3FYX.reshape(
        batch, colours, length // frames, frames, height // side, side, width // side, side
    ).permute(0, 2, 4, 6, 1, 3, 5, 7)
    return blocks.reshape(*blocks.shape[:4], -1)


def from_blocks(blocks_BFYXN: Tensor, frames: int) -> Tensor:
    """The inverse of `to_blocks`: [B, 3, F' * frames, 8 Y', 8 X']."""
    batch, groups, rows, columns, _ = blocks_BFYXN.shape
    side = PIXELS_PER_LATENT
    pixels = blocks_BFYXN.reshape(batch, groups, rows, columns, 3, frames, side, side).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return pixels.reshape(batch, 3, groups * frames, rows * side, columns * side)


def decoder_input(latents_BCFYX: Tensor, weight_KR: Tensor, bias_R: Tensor) -> Tensor:
    """What the decoder's regression starts from at every place: [B, F, Y, X, K + R + 1]."""
    frames_BFCYX = latents_BCFYX.transpose(1, 2)
    border = (NEIGHBOURHOOD // 2,) * 4
    padded = pad(frames_BFCYX.flatten(0, 1), border, mode="replicate").unflatten(0, frames_BFCYX.shape[:2])
    around = padded.unfold(3, NEIGHBOURHOOD, 1).unfold(4, NEIGHBOURHOOD, 1)  # [B, F, C, Y, X, 3, 3]
    neighbours = around.permute(0, 1, 3, 4, 2, 5, 6).flatten(4)
    random = torch.relu(neighbours @ weight_KR + bias_R)
    return torch.cat([neighbours, random, torch.ones_like(random[..., :1])], dim=-1)
