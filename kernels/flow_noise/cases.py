"""Shapes of noising: whole latents, images among them."""

import torch

from ..case import MODEL_CASES, QUICKSTART, Case, Cost, Draw

CASES = (*MODEL_CASES, QUICKSTART.but("one frame", F=1))


def inputs(case: Case, *, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> dict:
    """Keyword arguments; sample ids are scattered, as a shuffled epoch's are."""
    draw = Draw(case, dtype, device, seed)
    return {
        "x0_BCFYX": draw.normal("BCFYX"),
        "sigma_B": draw.uniform("B"),
        "sample_B": torch.arange(case["B"], device=device) * 1_000_003 + 17,
        "step": 5,
        "seed": 0x1234_5678_9ABC_DEF0,
    }


def cost(case: Case, dtype: torch.dtype) -> Cost:
    """One tensor in, two out; ten rounds of Philox and one normal are about a hundred operations, most on integers."""
    values = case.count("BCFYX")
    return Cost(forward_bytes=3 * dtype.itemsize * values, forward_flops=100 * values)
