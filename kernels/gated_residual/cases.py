"""Shapes of the gated residual: both streams."""

import torch

from ..case import CONTENTV_CROP, MODEL_CASES, QUICKSTART, Case, Draw

CASES = (
    *MODEL_CASES,
    *(case.but("text", S=case["T"]) for case in (QUICKSTART, CONTENTV_CROP)),
)


def inputs(case: Case, *, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> dict:
    """Keyword arguments; the gate is a chunk of one conditioning product."""
    draw = Draw(case, dtype, device, seed)
    gate_BD = torch.cat([draw.normal("BD"), draw.normal("BD")], dim=-1).chunk(2, dim=-1)[1]
    return {"x_SBD": draw.normal("SBD"), "gate_BD": gate_BD, "update_SBD": draw.normal("SBD")}
