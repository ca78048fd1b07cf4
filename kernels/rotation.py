"""Rotation of a head's halves, in plain torch: pairs are (i, i + R), R = E / 2 (arXiv 2104.09864, equation 34)."""

import torch
from torch import Tensor


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [..., E] turned pair by pair, in x's dtype.

    Args:
        cos, sin: they broadcast to [..., R] and are taken in x's dtype. No gradient reaches them.
    """
    cos, sin = (table.detach().to(x.dtype) for table in (cos, sin))
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
