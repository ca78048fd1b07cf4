"""Shapes of the optimizer step: a layer's two MLP matrices, bias and a rest of one value, in the middle of training."""

import torch

from ..case import CONTENTV_IMAGE, LAPTOP, ODD, QUICKSTART, SINGLE, Case, Cost, Draw
from . import AdamWUpdate

CASES = (QUICKSTART, LAPTOP, CONTENTV_IMAGE.but("8 layers", L=8), ODD, SINGLE)


def inputs(case: Case, *, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> dict:
    """Keyword arguments; `dtype` is the gradients' and the copies', the state is float32."""
    draw = Draw(case, torch.float32, device, seed)
    parameters = case["L"] * ("DM", "MD", "M", "")
    masters = [draw.normal(letters) for letters in parameters]
    return {
        "masters": masters,
        "gradients": [draw.normal(letters, dtype=dtype) for letters in parameters],
        "moments1": [draw.normal(letters) * 0.1 for letters in parameters],
        "moments2": [draw.normal(letters).square() for letters in parameters],
        "emas": [draw.normal(letters) for letters in parameters],
        "copies": [master.to(dtype, copy=True) for master in masters],
        "update": AdamWUpdate(
            lr=1e-3,
            beta1=0.9,
            beta2=0.95,
            epsilon=1e-8,
            weight_decay=0.1,
            step=7,
            clip_factor=torch.tensor(0.25, device=device),
            ema_decay=0.99,
        ),
    }


def cost(case: Case, dtype: torch.dtype) -> Cost:
    """Master, both moments and the average read and written in fp32, the gradient read, the copy written."""
    values = case["L"] * (2 * case.count("DM") + case["M"] + 1)
    return Cost(forward_bytes=(8 * 4 + 2 * dtype.itemsize) * values, forward_flops=20 * values)
