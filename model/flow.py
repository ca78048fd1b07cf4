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


@dataclass(frozen=True)
class Question:
    """What the model is asked about a microbatch, and the noise its answer is judged by."""

    x_t_BCFYX: torch.Tensor
    sigma_B: torch.Tensor
    caption: Caption
    noise_BCFYX: torch.Tensor

    def put_to(self, model: VelocityModel) -> torch.Tensor:
        return model(self.x_t_BCFYX, self.sigma_B, self.caption.tokens_BTW, self.caption.pooled_BW)


class Objective(Protocol):
    """What a step minimises."""

    def ask(self, clips: Clips, step: int) -> Question:
        """At update `step`."""

    def losses(
        self, velocity_SBP: torch.Tensor, clips: Clips, question: Question, first_token: int = 0
    ) -> torch.Tensor:
        """[B] fp32: what the tokens given, from `first_token` on, add to each sample's loss."""


@dataclass(frozen=True)
class FlowMatching:
    """The training objective of one run."""

    config: FlowConfig
    kernels: KernelSet
    seed: int
    empty: Caption
    """Features [T, W] and [W] of the empty caption, which stands in for a dropped one."""

    def ask(self, clips: Clips, step: int) -> Question:
        """At the noise level that each sample's id and `step` give it."""
        sigma_B = self.noise_levels(clips, step)
        x_t, noise = self.kernels.flow_noise(clips.latents_BCFYX, sigma_B, clips.sample_B, step=step, seed=self.seed)
        return Question(x_t, sigma_B, self.with_dropout(clips, step), noise)

    def losses(
        self, velocity_SBP: torch.Tensor, clips: Clips, question: Question, first_token: int = 0
    ) -> torch.Tensor:
        """[B] fp32: mean squared velocity error, summed over the tokens given."""
        return squared_error(self.kernels, velocity_SBP, clips, question, first_token)

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


def squared_error(
    kernels: KernelSet, velocity_SBP: torch.Tensor, clips: Clips, question: Question, first_token: int = 0
) -> torch.Tensor:
    """[B] fp32: unweighted, of the tokens given; those of all parts of a sample add up to its mean."""
    weight_B = torch.ones_like(question.sigma_B)
    return kernels.flow_loss(velocity_SBP, clips.latents_BCFYX, question.noise_BCFYX, weight_B, first_token=first_token)


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
