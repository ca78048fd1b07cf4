"""flow_noise as a torch.library operator: what a backend's kernel takes and fills."""

from typing import Protocol

import torch
from torch import Tensor

from ..operator import define
from ..philox import check_counter, check_seed
from . import FlowNoise


class Forward(Protocol):
    def __call__(
        self, x0_BCFYX: Tensor, sigma_B: Tensor, sample_B: Tensor, step: int, seed_low: int, seed_high: int,
        x_t_BCFYX: Tensor, noise_BCFYX: Tensor,
    ) -> None:  # fmt: skip
        """x_t and noise are contiguous; the seed comes as its two 32-bit words, both in [0, 2**32)."""


def operator(backend: str, forward: Forward) -> FlowNoise:
    """The operation by one backend's kernel."""
    forwards = define(
        f"flow_noise_{backend}",
        "(Tensor x0, Tensor sigma, Tensor sample, int step, int seed_low, int seed_high) -> (Tensor, Tensor)",
        _outputs,
        forward,
    )

    @torch.no_grad()
    def flow_noise(
        x0_BCFYX: Tensor, sigma_B: Tensor, sample_B: Tensor, *, step: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        check_seed(seed)
        check_counter("step", step)
        return forwards(x0_BCFYX, sigma_B, sample_B, step, seed & 0xFFFFFFFF, seed >> 32)

    return flow_noise


def _outputs(x0_BCFYX, *_rest):
    return x0_BCFYX.new_empty(x0_BCFYX.shape), x0_BCFYX.new_empty(x0_BCFYX.shape)
