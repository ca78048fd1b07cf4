"""Squared gradient norm in plain torch (torch's own sum adds in pieces)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..precision import working_dtype


@torch.no_grad()
def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    if not gradients:
        return torch.zeros((), dtype=torch.float32)
    squares = [gradient.to(working_dtype(gradient.dtype)).square().sum().float() for gradient in gradients]
    return torch.stack(squares).sum()
