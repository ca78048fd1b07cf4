"""Noising in plain torch."""

import torch
from torch import Tensor

from .. import philox
from ..precision import working_dtype


@torch.no_grad()
def flow_noise(x0_BCFYX: Tensor, sigma_B: Tensor, sample_B: Tensor, *, step: int, seed: int) -> tuple[Tensor, Tensor]:
    element = torch.arange(x0_BCFYX[0].numel(), device=x0_BCFYX.device)
    word0, word1, _, _ = philox.words(seed, element, sample_B[:, None], step, philox.Stream.NOISE)
    noise_BCFYX = philox.normal(word0, word1).to(x0_BCFYX.dtype).view(x0_BCFYX.shape)
    working = working_dtype(x0_BCFYX.dtype)
    sigma = sigma_B.to(working)[:, None, None, None, None]
    x_t_BCFYX = (1 - sigma) * x0_BCFYX.to(working) + sigma * noise_BCFYX.to(working)
    return x_t_BCFYX.to(x0_BCFYX.dtype).contiguous(), noise_BCFYX
