"""Flow matching: which noise level a sample sees, what the model is asked, and Euler's way back from noise.

Straight path x_t = (1 - sigma) x_0 + sigma noise, velocity target noise - x_0, mean squared error (Liu et al.,
arXiv 2209.03003; Lipman et al., arXiv 2210.02747; Stable Diffusion 3, arXiv 2403.03206, section 3). ContentV
publishes the path and the target, not the density of noise levels, the shift or the caption dropout: see `FlowConfig`.

Noise, noise level and caption dropout of a sample are functions of (seed, sample id, step), whatever rank computes it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from ..kernels.philox import Stream, normal, uniform, words
from ..kernels.registry import KernelSet
from .config import FlowConfig
from .embeddings import token_grid

VelocityModel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(latents_BCFYX, sigma_B, text_BTW, pooled_BW) -> velocity: tokens [S, B, P] in training, latents in sampling."""


@dataclass(frozen=True)
class Caption:
    """Text features of a batch."""

    tokens_BTW: torch.Tensor
    pooled_BW: torch.Tensor


@dataclass(frozen=True)
class Clips:
    """What one microbatch trains on, on the device."""

    latents_BCFYX: torch.Tensor
    caption: Caption
    sample_B: torch.Tensor
    """int64 sample ids."""


class Objective(Protocol):
    """What a step minimises."""

    def losses(self, model: VelocityModel, clips: Clips, step: int) -> torch.Tensor:
        """[B] fp32: each sample's loss at update `step`."""


@dataclass(frozen=True)
class FlowMatching:
    """The training objective of one run."""

    config: FlowConfig
    kernels: KernelSet
    seed: int
    empty: Caption
    """Features [T, W] and [W] of the empty caption, which stands in for a dropped one."""

    def losses(self, model: VelocityModel, clips: Clips, step: int) -> torch.Tensor:
        """[B] fp32: each sample's mean squared velocity error at the noise level its id and `step` give it."""
        sigma_B = self.noise_levels(clips, step)
        x_t, noise = self.kernels.flow_noise(clips.latents_BCFYX, sigma_B, clips.sample_B, step=step, seed=self.seed)
        caption = self.with_dropout(clips, step)
        velocity_SBP = model(x_t, sigma_B, caption.tokens_BTW, caption.pooled_BW)
        return self.kernels.flow_loss(velocity_SBP, clips.latents_BCFYX, noise, torch.ones_like(sigma_B))

    def noise_levels(self, clips: Clips, step: int) -> torch.Tensor:
        """sigma_B in (0, 1), fp32: drawn from the configured density, then shifted."""
        first, second, _, _ = words(self.seed, 0, clips.sample_B, step, Stream.TIMESTEP)
        if self.config.density == "uniform":
            sigma_B = uniform(first)
        else:
            sigma_B = torch.sigmoid(self.config.mean + self.config.std * normal(first, second))
        return shifted(sigma_B, self.config, clips.latents_BCFYX)

    def with_dropout(self, clips: Clips, step: int) -> Caption:
        """The captions, some of them replaced by the empty one."""
        first, _, _, _ = words(self.seed, 0, clips.sample_B, step, Stream.CAPTION_DROPOUT)
        dropped_B = uniform(first) < self.config.caption_dropout
        tokens_BTW, pooled_BW = clips.caption.tokens_BTW, clips.caption.pooled_BW
        return Caption(
            torch.where(dropped_B[:, None, None], self.empty.tokens_BTW.to(tokens_BTW), tokens_BTW),
            torch.where(dropped_B[:, None], self.empty.pooled_BW.to(pooled_BW), pooled_BW),
        )


def shifted(sigma: torch.Tensor, config: FlowConfig, latents_BCFYX: torch.Tensor) -> torch.Tensor:
    """sigma' = s sigma / (1 + (s - 1) sigma); s grows with the root of the token count if configured (SD3, eq. 23)."""
    shift = config.shift
    if config.shift_reference_tokens:
        frames, rows, columns = token_grid(latents_BCFYX)
        shift *= (frames * rows * columns / config.shift_reference_tokens) ** 0.5
    return shift * sigma / (1 + (shift - 1) * sigma)


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Classifier-free guidance (Ho & Salimans, arXiv 2207.12598): v = v(negative) + scale (v(prompt) - v(negative))."""

    prompt: Caption
    negative: Caption
    scale: float


@torch.no_grad()
def sample(
    model: VelocityModel,
    noise_BCFYX: torch.Tensor,
    guidance: Guidance,
    config: FlowConfig,
    steps: int,
    progress: Callable[[int], None] = lambda _done: None,
) -> torch.Tensor:
    """Latents by Euler's method over `steps` shifted noise levels from 1 to 0, both captions in one forward pass."""
    levels = torch.linspace(1, 0, steps + 1, device=noise_BCFYX.device)
    levels = shifted(levels, config, noise_BCFYX)
    tokens = torch.cat([guidance.prompt.tokens_BTW, guidance.negative.tokens_BTW])
    pooled = torch.cat([guidance.prompt.pooled_BW, guidance.negative.pooled_BW])
    latents = noise_BCFYX
    for done in range(steps):
        sigma, following = levels[done], levels[done + 1]
        velocity = model(latents.repeat(2, 1, 1, 1, 1), sigma.expand(len(tokens)), tokens, pooled).float()
        prompted, unprompted = velocity.chunk(2)
        latents = latents + (following - sigma) * (unprompted + guidance.scale * (prompted - unprompted))
        progress(done + 1)
    return latents


def initial_noise(shape: tuple[int, int, int, int], count: int, seed: int, device: torch.device) -> torch.Tensor:
    """[count, C, F, Y, X] fp32; video i's noise depends on (seed, i) alone."""
    channels, frames, rows, columns = shape
    element = torch.arange(channels * frames * rows * columns, device=device)
    first, second, _, _ = words(seed, element, torch.arange(count, device=device)[:, None], 0, Stream.SAMPLING)
    return normal(first, second).view(count, *shape)
