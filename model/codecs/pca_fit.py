"""Fits the embedded codec on training windows: bases first, then the decoder that looks around each block."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..clip_size import FRAMES_PER_LATENT, PIXELS_PER_LATENT, latent_size
from .pca import (
    CHANNELS,
    NEIGHBOURHOOD,
    PARTS,
    RANDOM_FEATURES,
    PCACodec,
    decoder_input,
    expected_shapes,
    split_parts,
    to_blocks,
)

VARIANCE_FLOOR = 1e-6
"""Smallest variance a component is divided by, in squared pixel units: keeps flat clips finite."""

RIDGE = 5e-3
"""Penalty on the decoder's squared weights, per sample. Chosen on held-out windows: a smaller one gains 0.2 dB on exact
latents and loses 0.7 dB on latents with a noise of 0.3, which sampled ones resemble."""

BIAS_SPREAD = 0.5
"""Standard deviation of the random features' biases, next to inputs of unit variance."""


def fit(windows: Callable[[], Iterable[Tensor]]) -> PCACodec:
    """A codec fitted on windows [3, F, Y, X] in [-1, 1] with F = 1 + 4k >= 5.

    `windows` is called twice and must yield the same windows each time; only one is in memory at once. Deterministic.
    """
    tensors = _fit_bases(windows())
    shapes = expected_shapes()
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shapes["features.weight"], generator=generator) / (NEIGHBOURHOOD * CHANNELS**0.5)
    bias = torch.randn(RANDOM_FEATURES, generator=generator) * BIAS_SPREAD
    tensors |= {"features.weight": weight, "features.bias": bias}
    # The encoder needs no synthesis, but a codec is only whole with one.
    encoder = PCACodec(tensors | {name: torch.zeros(shapes[name]) for name in shapes if name.endswith("synthesis")})
    regressions = {part: Regression(*shapes[f"{part}.synthesis"]) for part in PARTS}
    for pixels_3FYX in windows():
        latents_BCFYX = encoder.encode(pixels_3FYX[None])
        for (part, latents), (_, pixels) in zip(
            split_parts(latents_BCFYX), split_parts(pixels_3FYX[None]), strict=True
        ):
            inputs = decoder_input(latents, weight, bias).flatten(0, 3)
            regressions[part].add(inputs, to_blocks(pixels, PARTS[part]).flatten(0, 3))
    return PCACodec(tensors | {f"{part}.synthesis": regressions[part].solve() for part in PARTS})


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


class Regression:
    """Ridge regression from rows [M, I] to rows [M, N], from sums alone; the last input is the constant one."""

    def __init__(self, inputs: int, values: int):
        self.count = 0
        self.square = torch.zeros(inputs, inputs, dtype=torch.float64)
        self.product = torch.zeros(inputs, values, dtype=torch.float64)

    def add(self, inputs_MI: Tensor, values_MN: Tensor) -> None:
        inputs_MI = inputs_MI.double()
        self.count += len(inputs_MI)
        self.square += inputs_MI.T @ inputs_MI
        self.product += inputs_MI.T @ values_MN.double()

    def solve(self) -> Tensor:
        """Weights [I, N], float32."""
        penalty = torch.full((len(self.square),), RIDGE * self.count, dtype=torch.float64)
        penalty[-1] = 0  # the mean colour is not to be shrunk
        return torch.cholesky_solve(self.product, torch.linalg.cholesky(self.square + torch.diag(penalty))).float()


def _fit_bases(windows: Iterable[Tensor]) -> dict[str, Tensor]:
    """Mean and analysis of both parts.

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
    first_analysis = _components(first_covariance)
    later_analysis = _components(joint_covariance[split:, split:])
    order, sign = _matching(first_analysis.T @ joint_covariance[:split, split:] @ later_analysis)
    return {
        "first.mean": first_mean.float(),
        "first.analysis": first_analysis.float(),
        "later.mean": joint_mean[split:].float(),
        "later.analysis": (later_analysis[:, order] * sign).float(),
    }


def _components(covariance_NN: Tensor) -> Tensor:
    """The leading eigenvectors [N, C], largest entry positive, divided by their standard deviation."""
    variances, vectors = torch.linalg.eigh(covariance_NN)
    variances, vectors = variances[-CHANNELS:].flip(0), vectors[:, -CHANNELS:].flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors * largest.sign() / variances.clamp_min(VARIANCE_FLOOR).sqrt()


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
