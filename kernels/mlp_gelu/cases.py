"""Shapes of the MLP's activation: both streams, and the share of one of two tensor-parallel ranks."""

import torch

from ..case import CONTENTV_CROP, MODEL_CASES, QUICKSTART, Case, Draw

CASES = (
    *MODEL_CASES,
    *(case.but("text", S=case["T"]) for case in (QUICKSTART, CONTENTV_CROP)),
    CONTENTV_CROP.but("tensor parallel 2", M=CONTENTV_CROP["M"] // 2),
)


def inputs(case: Case, *, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> dict:
    """Keyword arguments; spread wide enough for both tails of the activation."""
    draw = Draw(case, dtype, device, seed)
    return {"hidden_SBM": draw.normal("SBM") * 2, "bias_M": draw.normal("M")}
