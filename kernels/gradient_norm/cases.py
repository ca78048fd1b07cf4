"""Shapes of the gradient norm: for each layer an MLP's two matrices, a bias and a rest of one value."""

import torch

from ..case import CONTENTV_IMAGE, LAPTOP, ODD, QUICKSTART, SINGLE, Case, Cost, Draw

CASES = (QUICKSTART, LAPTOP, CONTENTV_IMAGE.but("8 layers", L=8), ODD, SINGLE)


def inputs(case: Case, *, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> dict:
    """Keyword arguments; one gradient is a transposed view."""
    draw = Draw(case, dtype, device, seed)
    layer = ("DM", "DM", "M", "")
    gradients = [draw.normal(letters) for _ in range(case["L"]) for letters in layer]
    return {"gradients": [gradients[0], gradients[1].T, *gradients[2:]]}


def cost(case: Case, dtype: torch.dtype) -> Cost:
    """Every gradient read once."""
    values = case["L"] * (2 * case.count("DM") + case["M"] + 1)
    return Cost(forward_bytes=dtype.itemsize * values, forward_flops=2 * values)
