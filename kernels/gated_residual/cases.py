"""Shapes of the gated residual: both streams."""

import torch

from ..case import CONTENTV_CROP, MODEL_CASES, QUICKSTART, Case, Cost, Draw

CASES = (
    *MODEL_CASES,
    *(case.but("text", S=case["T"]) for case in (QUICKSTART, CONTENTV_CROP)),
)


def inputs(case: Case, *, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> dict:
    """Keyword arguments; the gate is a chunk of one conditioning product."""
    draw = Draw(case, dtype, device, seed)
    gate_BD = torch.cat([draw.normal("BD"), draw.normal("BD")], dim=-1).chunk(2, dim=-1)[1]
    return {"x_SBD": draw.normal("SBD"), "gate_BD": gate_BD, "update_SBD": draw.normal("SBD")}


def cost(case: Case, dtype: torch.dtype) -> Cost:
    """Backward reads the gradient and the update, and writes the update's gradient: x's is the one that came."""
    tokens = case.count("SBD")
    return Cost(
        forward_bytes=3 * dtype.itemsize * tokens,
        forward_flops=2 * tokens,
        backward_bytes=3 * dtype.itemsize * tokens,
        backward_flops=3 * tokens,
    )
