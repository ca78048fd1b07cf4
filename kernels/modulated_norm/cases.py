"""Shapes of the modulated norm: both streams."""

import torch

from ..case import CONTENTV_CROP, MODEL_CASES, QUICKSTART, SINGLE, Case, Cost, Draw

CASES = (
    *(case for case in MODEL_CASES if case is not SINGLE),
    # Two values normalise to -1 and 1 whatever they were: their gradient is rounding and nothing else.
    SINGLE.but("width 3", D=3),
    *(case.but("text", S=case["T"]) for case in (QUICKSTART, CONTENTV_CROP)),
)


def inputs(case: Case, *, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> dict:
    """Keyword arguments. Tokens have a mean and a spread for the norm to remove; shift and scale are two chunks of one
    conditioning product."""
    draw = Draw(case, dtype, device, seed)
    shift_BD, scale_BD = torch.cat([draw.normal("BD"), draw.normal("BD")], dim=-1).chunk(2, dim=-1)
    x_SBD = draw.normal("SBD", mean=0.5) * 3
    return {"x_SBD": x_SBD, "shift_BD": shift_BD, "scale_BD": scale_BD, "epsilon": 1e-6}


def cost(case: Case, dtype: torch.dtype) -> Cost:
    """Tokens, and two moments a row."""
    tokens, rows = case.count("SBD"), 8 * case.count("SB")
    return Cost(
        forward_bytes=2 * dtype.itemsize * tokens + rows,
        forward_flops=8 * tokens,
        backward_bytes=3 * dtype.itemsize * tokens + rows,
        backward_flops=14 * tokens,
    )
