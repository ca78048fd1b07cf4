"""Modulated LayerNorm in plain torch."""

import torch
from torch import Tensor
from torch.nn import functional

from ..precision import working_dtype


def modulated_norm(x_SBD: Tensor, shift_BD: Tensor, scale_BD: Tensor, *, epsilon: float) -> Tensor:
    x, shift, scale = (tensor.to(working_dtype(x_SBD.dtype)) for tensor in (x_SBD, shift_BD, scale_BD))
    normed = functional.layer_norm(x, x.shape[-1:], eps=epsilon)
    return torch.addcmul(shift, normed, 1 + scale).to(x_SBD.dtype)
