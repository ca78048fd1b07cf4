"""Weighted squared error of the velocity, in token order; a kernel never materialises the target.

    target = noise - x0                                              the straight path's velocity, d x_t / d sigma
    loss_b = weight_b / (C F Y X) * sum over the tokens given of (velocity - target)^2

Tokens are (f, y, x), row-major over the patch grid [F, Y/2, X/2]. A token's P = 4 C values are laid out (p q c): row p
in the patch, then column q, then channel c. The divisor is the whole latent's size even when only some tokens are
given, so the losses of sequence shards add up to the sample's loss.

Source: Stable Diffusion 3, arXiv 2403.03206, section 2 (conditional flow matching, velocity form).
"""

from typing import Protocol

from torch import Tensor

from ..backend import Backend
from ..ranks import DEVICE_TYPES
from ..toolchains import native_refusal, npu_triton_refusal, triton_refusal


class FlowLoss(Protocol):
    def __call__(
        self,
        velocity_SBP: Tensor,
        x0_BCFYX: Tensor,
        noise_BCFYX: Tensor,
        weight_B: Tensor,
        *,
        first_token: int = 0,
    ) -> Tensor:
        """Each sample's loss over the tokens given.

        Args:
            velocity_SBP: predicted velocity of S consecutive tokens, any strides; S may be 0.
            x0_BCFYX, noise_BCFYX: whole latents, one dtype, any strides; Y and X even.
            weight_B: float32 weight of each sample.
            first_token: index of velocity's first token in the sample; first_token + S is at most F Y X / 4.

        Returns:
            loss_B in float32 (float64 for float64 velocity).

        fp32 inside. The only gradient is velocity's: 2 weight_b d_loss_b / (C F Y X) * (velocity - target). Saved for
        backward: velocity, x0, noise, weight.
        """
        ...


BACKENDS = (
    Backend.beside(__name__, "cpu_native", ("cpu",), native_refusal),
    Backend.beside(__name__, "gpu_triton", ("cuda",), triton_refusal),
    Backend.beside(__name__, "npu_triton", ("npu",), npu_triton_refusal),
    Backend.beside(__name__, "reference", DEVICE_TYPES),
)
