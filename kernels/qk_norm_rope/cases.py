"""Shapes of QK-norm and rotation: both streams, with and without rotation."""

import torch

from ..case import CONTENTV_CROP, CONTENTV_IMAGE, CONTENTV_VIDEO, MODEL_CASES, ODD, QUICKSTART, Case, Cost, Draw

CASES = (
    *(case.but("rotated", R=case["E"] // 2) for case in MODEL_CASES),
    *(case.but("video unrotated", R=0) for case in (CONTENTV_IMAGE, CONTENTV_VIDEO, ODD)),
    *(case.but("text", S=case["T"], R=0, large=False) for case in (QUICKSTART, CONTENTV_CROP)),
)


def inputs(case: Case, *, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> dict:
    """Keyword arguments; queries and keys are slices of one product, as in the model. R = 0 means no rotation."""
    draw = Draw(case, dtype, device, seed)
    width = case["E"]
    qkv = torch.cat([draw.normal("SBHE") for _ in range(3)], dim=-1)
    rotation = None
    if case["R"]:
        angle_SR = 20 * draw.uniform("SR")
        rotation = (angle_SR.cos(), angle_SR.sin())
    return {
        "q_SBHE": qkv[..., :width],
        "k_SBHE": qkv[..., width : 2 * width],
        "q_gain_E": draw.normal("E", mean=1.0),
        "k_gain_E": draw.normal("E", mean=1.0),
        "rotation": rotation,
        "epsilon": 1e-6,
    }


def cost(case: Case, dtype: torch.dtype) -> Cost:
    """Queries and keys, and the rotation's two tables; few operations a value."""
    values, rows, tables = 2 * case.count("SBHE"), 8 * case.count("SBH"), 8 * case["S"] * case["R"]
    return Cost(
        forward_bytes=2 * dtype.itemsize * values + rows + tables,
        forward_flops=8 * values,
        backward_bytes=3 * dtype.itemsize * values + rows + tables,
        backward_flops=14 * values,
    )
