"""Shapes of the optimizer step: an MLP's matrix in the middle of training."""

import torch

from ..case import CONTENTV_IMAGE, ODD, QUICKSTART, SINGLE, Case, Draw
from . import AdamWUpdate

CASES = (QUICKSTART, CONTENTV_IMAGE, ODD, SINGLE)


def inputs(case: Case, *, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> dict:
    """Keyword arguments; `dtype` is the gradient's and the copy's, the state is float32."""
    draw = Draw(case, torch.float32, device, seed)
    master = draw.normal("DM")
    return {
        "master": master,
        "gradient": draw.normal("DM", dtype=dtype),
        "moment1": draw.normal("DM") * 0.1,
        "moment2": draw.normal("DM").square(),
        "ema": draw.normal("DM"),
        "copy": master.to(dtype, copy=True),
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
