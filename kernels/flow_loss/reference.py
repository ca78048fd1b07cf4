"""Flow-matching loss in plain torch, the target materialised in token order."""

import torch
from torch import Tensor

from ..precision import working_dtype

_PATCH = 2


def flow_loss(
    velocity_SBP: Tensor, x0_BCFYX: Tensor, noise_BCFYX: Tensor, weight_B: Tensor, *, first_token: int = 0
) -> Tensor:
    velocity = velocity_SBP.to(working_dtype(velocity_SBP.dtype))
    with torch.no_grad():
        target_SBP = _tokens(noise_BCFYX.to(velocity.dtype) - x0_BCFYX.to(velocity.dtype))
        weight = weight_B.to(velocity.dtype) / x0_BCFYX[0].numel()
    tokens = velocity.shape[0]
    assert 0 <= first_token <= len(target_SBP) - tokens, (
        f"tokens {first_token} to {first_token + tokens} are not all among the sample's {len(target_SBP)}"
    )
    error = velocity - target_SBP[first_token : first_token + tokens]
    return weight * error.square().sum(dim=(0, 2))


def _tokens(latent_BCFYX: Tensor) -> Tensor:
    """[B, C, F, Y, X] to tokens [S, B, (p q c)]."""
    batch, channels, frames, rows, columns = latent_BCFYX.shape
    patches = latent_BCFYX.reshape(batch, channels, frames, rows // _PATCH, _PATCH, columns // _PATCH, _PATCH)
    return patches.permute(2, 3, 5, 0, 4, 6, 1).reshape(-1, batch, _PATCH * _PATCH * channels)
