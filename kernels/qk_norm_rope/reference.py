"""QK-RMSNorm and rotation in plain torch."""

import torch
from torch import Tensor

from ..precision import working_dtype
from ..rotation import rotate_halves


def qk_norm_rope(
    q_SBHE: Tensor,
    k_SBHE: Tensor,
    q_gain_E: Tensor,
    k_gain_E: Tensor,
    rotation: tuple[Tensor, Tensor] | None,
    *,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    q_normed, k_normed = _norm(q_SBHE, q_gain_E, epsilon), _norm(k_SBHE, k_gain_E, epsilon)
    if rotation is not None:
        q_normed, k_normed = _rotate(q_normed, *rotation), _rotate(k_normed, *rotation)
    return q_normed.to(q_SBHE.dtype), k_normed.to(k_SBHE.dtype)


def _norm(x_SBHE: Tensor, gain_E: Tensor, epsilon: float) -> Tensor:
    x = x_SBHE.to(working_dtype(x_SBHE.dtype))
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * gain_E.to(x.dtype)


def _rotate(x_SBHE: Tensor, cos_SR: Tensor, sin_SR: Tensor) -> Tensor:
    return rotate_halves(x_SBHE, cos_SR[:, None, None, :], sin_SR[:, None, None, :])
