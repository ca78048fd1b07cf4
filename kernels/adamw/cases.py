"""Shapes of the optimizer step: an MLP's two matrices, a bias and a rest of one value, in the middle of training."""

import torch

from ..case import CONTENTV_IMAGE, ODD, QUICKSTART, SINGLE, Case, Draw
from . import AdamWUpdate

CASES = (QUICKSTART, CONTENTV_IMAGE, ODD, SINGLE)


def inputs(case: Case, *, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> dict:
    """Keyword arguments; `dtype` is the gradients' and the copies', the state is float32."""
    draw = Draw(case, torch.float32, device, seed)
    parameters = ("DM", "MD", "M", "")
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
