"""Gated residual in plain torch."""

import torch
from torch import Tensor

from ..precision import working_dtype


def gated_residual(x_SBD: Tensor, gate_BD: Tensor, update_SBD: Tensor) -> Tensor:
    x, gate, update = (tensor.to(working_dtype(x_SBD.dtype)) for tensor in (x_SBD, gate_BD, update_SBD))
    return torch.addcmul(x, gate, update).to(x_SBD.dtype)
