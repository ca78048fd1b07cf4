"""Shapes of the gated residual with its norm: both streams."""

import torch

from ..case import CONTENTV_CROP, MODEL_CASES, QUICKSTART, SINGLE, Case, Cost, Draw

CASES = (
    *(case for case in MODEL_CASES if case is not SINGLE),
    # The norm sees out rounded: of few values a bf16 row keeps so little that the allowed error is luck.
    SINGLE.but("width 24", D=24),
    *(case.but("text", S=case["T"]) for case in (QUICKSTART, CONTENTV_CROP)),
)


def inputs(case: Case, *, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> dict:
    """Keyword arguments; gate, shift and scale are chunks of one conditioning product."""
    draw = Draw(case, dtype, device, seed)
    _, gate_BD, shift_BD, scale_BD = torch.cat([draw.normal("BD") for _ in range(4)], dim=-1).chunk(4, dim=-1)
    return {
        "x_SBD": draw.normal("SBD", mean=0.5) * 3,
        "gate_BD": gate_BD,
        "update_SBD": draw.normal("SBD"),
        "shift_BD": shift_BD,
        "scale_BD": scale_BD,
        "epsilon": 1e-6,
    }


def cost(case: Case, dtype: torch.dtype) -> Cost:
    """Forward reads two and writes two; backward reads two gradients, out and the update, and writes two."""
    tokens, rows = case.count("SBD"), 8 * case.count("SB")
    return Cost(
        forward_bytes=4 * dtype.itemsize * tokens + rows,
        forward_flops=10 * tokens,
        backward_bytes=6 * dtype.itemsize * tokens + rows,
        backward_flops=18 * tokens,
    )
