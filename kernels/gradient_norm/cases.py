"""Shapes of the gradient norm: an MLP's two matrices, a bias and a scalar-sized rest."""

import torch

from ..case import CONTENTV_IMAGE, ODD, QUICKSTART, SINGLE, Case, Draw

CASES = (QUICKSTART, CONTENTV_IMAGE, ODD, SINGLE)


def inputs(case: Case, *, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> dict:
    """Keyword arguments; one gradient is a transposed view."""
    draw = Draw(case, dtype, device, seed)
    return {"gradients": [draw.normal("DM"), draw.normal("DM").T, draw.normal("M"), draw.normal("")]}
