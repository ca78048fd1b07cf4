"""Into and out of the transformer's width: patches, and the conditioning of time and caption.

Source: Stable Diffusion 3, arXiv 2403.03206, section 4 and figure 2.
"""

import math

import torch
import torch.nn.functional as functional

from ..parallel.layers import LayerFactory, ShardedModule
from .config import PATCH, ModelConfig
from .cost import TIMESTEP_FEATURES
from .positions import Grid


def token_grid(latents_BCFYX: torch.Tensor) -> Grid:
    """(F, Y / 2, X / 2), the grid of tokens. Raises ValueError for rows or columns that are odd."""
    _, _, frames, rows, columns = latents_BCFYX.shape
    if rows % PATCH or columns % PATCH:
        raise ValueError(
            f"latents are {rows} x {columns} in rows x columns; patches of {PATCH} x {PATCH} need both even: choose a "
            "clip size that is a multiple of 16 pixels"
        )
    return frames, rows // PATCH, columns // PATCH


def patchify(latents_BCFYX: torch.Tensor) -> torch.Tensor:
    """[B, C, F, Y, X] -> tokens [S, B, P]: S in the order (f, y, x), P = 4C as (patch row, patch column, channel)."""
    batch, channels, _, _, _ = latents_BCFYX.shape
    frames, rows, columns = token_grid(latents_BCFYX)
    patches = latents_BCFYX.reshape(batch, channels, frames, rows, PATCH, columns, PATCH)
    return patches.permute(2, 3, 5, 0, 4, 6, 1).reshape(frames * rows * columns, batch, PATCH * PATCH * channels)


def unpatchify(tokens_SBP: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The inverse of `patchify`: [S, B, P] -> [B, C, F, Y, X]."""
    frames, rows, columns = grid
    _, batch, values = tokens_SBP.shape
    channels = values // PATCH**2
    patches = tokens_SBP.reshape(frames, rows, columns, batch, PATCH, PATCH, channels)
    latents = patches.permute(3, 6, 0, 1, 4, 2, 5)
    return latents.reshape(batch, channels, frames, rows * PATCH, columns * PATCH)


def timestep_features(sigma_B: torch.Tensor) -> torch.Tensor:
    """[B] noise levels in (0, 1) -> [B, 256] fp32: cosines, then sines, of 1000 sigma at 128 frequencies."""
    half = TIMESTEP_FEATURES // 2
    exponents = torch.arange(half, dtype=torch.float32, device=sigma_B.device) / half
    angles = (1000.0 * sigma_B.float())[:, None] * torch.exp(-math.log(10_000) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TwoLayerPerceptron(ShardedModule):
    """Linear, SiLU, Linear: what brings a feature row to the transformer's width."""

    def __init__(self, inputs: int, width: int, layers: LayerFactory, config: ModelConfig):
        super().__init__(config)
        self.first = layers.replicated(inputs, width, on_sequence=False)
        self.second = layers.replicated(width, width, on_sequence=False)

    def forward(self, features_BI: torch.Tensor) -> torch.Tensor:
        return self.second(functional.silu(self.first(features_BI.to(self.first.weight.dtype))))


class Condition(ShardedModule):
    """One row a sample: SiLU of the sum of the embedded timestep and the embedded pooled caption.

    Every AdaLN of the model begins with that SiLU, so it is taken once, here.
    """

    def __init__(self, config: ModelConfig, layers: LayerFactory):
        super().__init__(config)
        self.time = TwoLayerPerceptron(TIMESTEP_FEATURES, config.width, layers, config)
        self.caption = TwoLayerPerceptron(config.pooled_width, config.width, layers, config)

    def forward(self, sigma_B: torch.Tensor, pooled_BW: torch.Tensor) -> torch.Tensor:
        return functional.silu(self.time(timestep_features(sigma_B)) + self.caption(pooled_BW))


class Modulation(ShardedModule):
    """AdaLN (Peebles & Xie, arXiv 2212.09748): the condition [B, D] to `parts` rows [B, D] of shifts, scales, gates."""

    def __init__(self, parts: int, config: ModelConfig, layers: LayerFactory):
        super().__init__(config)
        self.parts = parts
        self.linear = layers.sample(config.width, parts * config.width)

    def forward(self, condition_BD: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.linear(condition_BD).chunk(self.parts, dim=-1)
