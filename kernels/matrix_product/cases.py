"""Shapes of the block's largest product, tokens by the MLP's first weight, and of one with few tokens."""

import torch

from ..case import CONTENTV_CROP, CONTENTV_VIDEO, LAPTOP, MODEL_CASES, Case, Cost, Draw

CASES = (
    *MODEL_CASES,
    *(case.but("text", S=case["T"]) for case in (LAPTOP, CONTENTV_CROP)),
    LAPTOP.but("tensor parallel 2", M=LAPTOP["M"] // 2),
    CONTENTV_VIDEO.but("tensor parallel 8", M=CONTENTV_VIDEO["M"] // 8),
)


def inputs(case: Case, *, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> dict:
    """Keyword arguments; the weight lies as linears keep it, [M, D]."""
    draw = Draw(case, dtype, device, seed)
    return {
        "left_NI": draw.normal("SBD").flatten(0, 1),
        "right_IO": draw.normal("MD").t(),
        "bias_O": draw.normal("M"),
    }


def cost(case: Case, dtype: torch.dtype) -> Cost:
    return Cost(
        forward_bytes=dtype.itemsize * (case.count("SBD") + case.count("MD") + case.count("SBM")),
        forward_flops=2 * case.count("SBDM"),
    )
