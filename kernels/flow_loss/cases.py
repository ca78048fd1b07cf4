"""Shapes of the loss: all tokens of a sample, and the shard that one rank of a split sequence holds."""

import torch

from ..case import MODEL_CASES, ODD, QUICKSTART, Case, Cost, Draw

CASES = (
    *(case.but("whole", first=0) for case in MODEL_CASES),
    QUICKSTART.but("second quarter", S=30, first=30),
    ODD.but("last tokens", S=4, first=11),
    ODD.but("no tokens", S=0, first=15),
)


def inputs(case: Case, *, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> dict:
    """Keyword arguments; `first` is the index of the first token given."""
    draw = Draw(case, dtype, device, seed)
    return {
        "velocity_SBP": draw.normal("SBP"),
        "x0_BCFYX": draw.normal("BCFYX"),
        "noise_BCFYX": draw.normal("BCFYX"),
        "weight_B": draw.uniform("B") + 0.5,
        "first_token": case["first"],
    }


def cost(case: Case, dtype: torch.dtype) -> Cost:
    """Velocity, and the parts of data and noise that its tokens speak of."""
    values = case.count("SBP")
    return Cost(
        forward_bytes=3 * dtype.itemsize * values,
        forward_flops=4 * values,
        backward_bytes=4 * dtype.itemsize * values,
        backward_flops=4 * values,
    )
