"""Shapes of the gradient norm: an MLP's two matrices, a bias and a scalar-sized rest."""

import torch

from ..case import CONTENTV_IMAGE, LAPTOP, ODD, QUICKSTART, SINGLE, Case, Cost, Draw

CASES = (QUICKSTART, LAPTOP, CONTENTV_IMAGE, ODD, SINGLE)


def inputs(case: Case, *, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> dict:
    """Keyword arguments; one gradient is a transposed view."""
    draw = Draw(case, dtype, device, seed)
    return {"gradients": [draw.normal("DM"), draw.normal("DM").T, draw.normal("M"), draw.normal("")]}


def cost(case: Case, dtype: torch.dtype) -> Cost:
    """Every gradient read once."""
    values = 2 * case.count("DM") + case["M"] + 1
    return Cost(forward_bytes=dtype.itemsize * values, forward_flops=2 * values)
