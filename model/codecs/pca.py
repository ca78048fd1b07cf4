"""The embedded codec: principal components of pixel blocks, fitted on the clips themselves, no weights to fetch.

Two bases: one for the first frame (blocks of 1 x 8 x 8 pixels x 3 colours = 192 values), one for every later group of
four frames (4 x 8 x 8 x 3 = 768 values); each block becomes its 16 leading principal components, divided by their
standard deviations (whitening), so latents have zero mean and unit variance over the training windows. Linear, exactly
causal, deterministic. Source: Jolliffe, Principal Component Analysis, 2nd ed., chapter 3 and section 6.1.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from .codec import FRAMES_PER_LATENT, PIXELS_PER_LATENT, identity_of, latent_size, save_tensors

CHANNELS = 16

VARIANCE_FLOOR = 1e-6
"""Smallest variance a component is divided by, in squared pixel units: keeps flat clips finite."""


class PCACodec:
    """Implements `Codec`. Each kind of block (`first`, `later`; N values) has float32 tensors `mean` [N], `analysis`
    [N, C] and `synthesis` [C, N]: latent = (block - mean) analysis, block = latent synthesis + mean.
    """

    kind = "pca"
    channels = CHANNELS

    def __init__(self, tensors: dict[str, Tensor]):
        expected = {}
        for part, frames in (("first", 1), ("later", FRAMES_PER_LATENT)):
            values = 3 * frames * PIXELS_PER_LATENT**2
            expected[f"{part}.mean"] = (values,)
            expected[f"{part}.analysis"] = (values, CHANNELS)
            expected[f"{part}.synthesis"] = (CHANNELS, values)
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if found != expected:
            raise ValueError(f"a pca codec has tensors {found}; expected {expected}: fit or load it again")
        self.tensors = {name: tensor.detach().float() for name, tensor in tensors.items()}
        self.identity = identity_of(self.kind, self.tensors)

    def encode(self, pixels_B3FYX: Tensor) -> Tensor:
        """See `Codec.encode`."""
        latent_size(*pixels_B3FYX.shape[2:])
        parts = [("first", pixels_B3FYX[:, :, :1]), ("later", pixels_B3FYX[:, :, 1:])]
        latents = [self._project(part, pixels) for part, pixels in parts if pixels.shape[2]]
        return torch.cat(latents, dim=1).permute(0, 4, 1, 2, 3).contiguous()

    def decode(self, latents_BCFYX: Tensor) -> Tensor:
        """See `Codec.decode`."""
        if latents_BCFYX.dim() != 5 or latents_BCFYX.shape[1] != CHANNELS or not latents_BCFYX.shape[2]:
            raise ValueError(f"latents are {tuple(latents_BCFYX.shape)}; expected [B, {CHANNELS}, 1 + k, Y, X]")
        latents_BFYXC = latents_BCFYX.float().permute(0, 2, 3, 4, 1)
        parts = [("first", latents_BFYXC[:, :1], 1), ("later", latents_BFYXC[:, 1:], FRAMES_PER_LATENT)]
        pixels = [self._restore(part, latents, frames) for part, latents, frames in parts if latents.shape[1]]
        return torch.cat(pixels, dim=2).clamp_(-1, 1)

    def save(self, folder: Path) -> None:
        """See `Codec.save`."""
        save_tensors(folder, self.kind, self.tensors)

    def _tensor(self, name: str, like: Tensor) -> Tensor:
        return self.tensors[name].to(like.device)

    def _project(self, part: str, pixels_B3FYX: Tensor) -> Tensor:
        blocks = to_blocks(pixels_B3FYX.float(), 1 if part == "first" else FRAMES_PER_LATENT)
        return (blocks - self._tensor(f"{part}.mean", blocks)) @ self._tensor(f"{part}.analysis", blocks)

    def _restore(self, part: str, latents_BFYXC: Tensor, frames: int) -> Tensor:
        synthesis = self._tensor(f"{part}.synthesis", latents_BFYXC)
        return from_blocks(latents_BFYXC @ synthesis + self._tensor(f"{part}.mean", synthesis), frames)


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


class Moments:
    """Running mean and second moments of rows [M, N], summed in float64 so that the order of windows hardly matters."""

    def __init__(self, values: int):
        self.count = 0
        self.total = torch.zeros(values, dtype=torch.float64)
        self.square = torch.zeros(values, values, dtype=torch.float64)

    def add(self, rows_MN: Tensor) -> None:
        rows_MN = rows_MN.double()
        self.count += len(rows_MN)
        self.total += rows_MN.sum(0)
        self.square += rows_MN.T @ rows_MN

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        mean = self.total / self.count
        return mean, self.square / self.count - torch.outer(mean, mean)


def fit(windows: Iterable[Tensor]) -> PCACodec:
    """A codec fitted on `windows`, each [3, F, Y, X] in [-1, 1] with F = 1 + 4k >= 5; one pass, one window in memory.

    The later basis is put into the order and sign of the first frame's, by the correlation of their latents over the
    same place: what stands still then keeps its latent over time, which a transformer learns sooner.
    """
    # Rows are [first block | later block] of the same place, so that one covariance holds both bases and their link.
    split = 3 * PIXELS_PER_LATENT**2
    first, joint = Moments(split), Moments(split * (1 + FRAMES_PER_LATENT))
    for pixels_3FYX in windows:
        frames = latent_size(*pixels_3FYX.shape[1:])[0]
        if frames < 2:
            raise ValueError("a window of 1 frame cannot fit the later basis; give windows of 5, 9, 13, ... frames")
        start_1FYXN = to_blocks(pixels_3FYX[None, :, :1], 1)
        later_1FYXN = to_blocks(pixels_3FYX[None, :, 1:], FRAMES_PER_LATENT)
        first.add(start_1FYXN.reshape(-1, split))
        joint.add(torch.cat([start_1FYXN.expand(-1, frames - 1, -1, -1, -1), later_1FYXN], -1).flatten(0, 3))
    if not first.count:
        raise ValueError("no window was given to fit the codec on; expected at least one")
    joint_mean, joint_covariance = joint.mean_and_covariance()
    first_mean, first_covariance = first.mean_and_covariance()
    first_vectors, first_scale = _components(first_covariance)
    later_vectors, later_scale = _components(joint_covariance[split:, split:])
    link = (first_vectors / first_scale).T @ joint_covariance[:split, split:] @ (later_vectors / later_scale)
    order, sign = _matching(link)
    later_vectors, later_scale = later_vectors[:, order] * sign, later_scale[order]
    tensors = {}
    for part, mean, vectors, scale in (
        ("first", first_mean, first_vectors, first_scale),
        ("later", joint_mean[split:], later_vectors, later_scale),
    ):
        tensors[f"{part}.mean"] = mean.float()
        tensors[f"{part}.analysis"] = (vectors / scale).float()
        tensors[f"{part}.synthesis"] = (vectors * scale).T.float().contiguous()
    return PCACodec(tensors)


def _components(covariance_NN: Tensor) -> tuple[Tensor, Tensor]:
    """The leading unit eigenvectors [N, C], their largest entry positive, and standard deviations [C], descending."""
    variances, vectors = torch.linalg.eigh(covariance_NN)
    variances, vectors = variances[-CHANNELS:].flip(0), vectors[:, -CHANNELS:].flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors * largest.sign(), variances.clamp_min(VARIANCE_FLOOR).sqrt()


def _matching(link_CC: Tensor) -> tuple[Tensor, Tensor]:
    """Greedy one-to-one matching of columns to rows by absolute value: column per row [C], and the sign of each."""
    remaining = link_CC.abs().clone()
    order = torch.zeros(len(link_CC), dtype=torch.int64)
    for _ in range(len(link_CC)):
        row, column = divmod(int(remaining.argmax()), len(link_CC))
        order[row] = column
        remaining[row], remaining[:, column] = -1.0, -1.0
    sign = link_CC[torch.arange(len(link_CC)), order].sign()
    return order, torch.where(sign == 0, torch.ones_like(sign), sign)
