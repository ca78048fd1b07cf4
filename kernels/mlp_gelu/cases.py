"""Shapes of the MLP's activation: both streams, and the share of one of two tensor-parallel ranks."""

import torch

from ..case import CONTENTV_CROP, MODEL_CASES, QUICKSTART, Case, Cost, Draw

CASES = (
    *MODEL_CASES,
    *(case.but("text", S=case["T"]) for case in (QUICKSTART, CONTENTV_CROP)),
    CONTENTV_CROP.but("tensor parallel 2", M=CONTENTV_CROP["M"] // 2),
)


def inputs(case: Case, *, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> dict:
    """Keyword arguments; spread wide enough for both tails of the activation."""
    draw = Draw(case, dtype, device, seed)
    return {"hidden_SBM": draw.normal("SBM") * 2, "bias_M": draw.normal("M")}


def cost(case: Case, dtype: torch.dtype) -> Cost:
    """Hidden features in and out; the hyperbolic tangent counts as ten operations."""
    values = case.count("SBM")
    return Cost(
        forward_bytes=2 * dtype.itemsize * values,
        forward_flops=20 * values,
        backward_bytes=3 * dtype.itemsize * values,
        backward_flops=30 * values,
    )
