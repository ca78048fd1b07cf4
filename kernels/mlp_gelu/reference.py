"""Bias and tanh-GELU in plain torch."""

from torch import Tensor
from torch.nn import functional

from ..precision import working_dtype


def mlp_gelu(hidden_SBM: Tensor, bias_M: Tensor) -> Tensor:
    working = working_dtype(hidden_SBM.dtype)
    return functional.gelu(hidden_SBM.to(working) + bias_M.to(working), approximate="tanh").to(hidden_SBM.dtype)
