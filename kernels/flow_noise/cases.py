"""Shapes of noising: whole latents, images among them."""

import torch

from ..case import MODEL_CASES, QUICKSTART, Case, Draw

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
