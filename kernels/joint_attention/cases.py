"""Shapes of joint attention: [video ; text] asking, video alone asking (last block), one ring block asking another;
with the rotation of the video tokens inside and without."""

import torch

from ..case import (
    CONTENTV_CROP,
    CONTENTV_IMAGE,
    CONTENTV_VIDEO,
    MODEL_CASES,
    ODD,
    QUICKSTART,
    SINGLE,
    Case,
    Cost,
    Draw,
)


def _video_queries(case: Case) -> Case:
    return case.but("video queries only, joint keys", Q=case["S"])


def _joint_queries(case: Case) -> Case:
    return case.but("joint queries", Q=case["J"])


def _rotated(case: Case) -> Case:
    return case.but("rotated", R=case["E"] // 2)


CASES = (
    *(_joint_queries(case) for case in MODEL_CASES),
    *(_video_queries(case) for case in (QUICKSTART, CONTENTV_CROP, CONTENTV_IMAGE, CONTENTV_VIDEO, ODD)),
    CONTENTV_VIDEO.but("a ring of 4", Q=CONTENTV_VIDEO["J"] // 4, J=CONTENTV_VIDEO["J"] // 4),
    *(_joint_queries(_rotated(case)) for case in (CONTENTV_CROP, CONTENTV_VIDEO, SINGLE)),
    _joint_queries(_rotated(ODD).but("two samples", B=2)),
    _video_queries(_rotated(ODD).but("two samples", B=2)),
    _rotated(ODD).but("a part of the queries is video", B=1, H=3, S=9, Q=23, J=31),
    _rotated(ODD).but("no text", B=1, H=2, S=33, Q=33, J=33, E=24, R=12),
    ODD.but("more queries than keys", Q=23, J=5),
    ODD.but("whole blocks", B=1, H=2, E=64, Q=128, J=256),
    ODD.but("blocks and a rest", B=2, H=1, E=64, Q=131, J=197),
    ODD.but("the widest head", B=1, H=1, E=128, Q=70, J=150),
    ODD.but("the narrowest tile", B=1, H=3, E=16, Q=129, J=65),
    ODD.but("a width between", B=1, H=2, E=24, Q=65, J=131),
)


def inputs(case: Case, *, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> dict:
    """Keyword arguments, strided as the model hands them over: tokens come sequence-first, [S, B, H, E]."""
    draw = Draw(case, dtype, device, seed)
    q_BHQE, k_BHJE, v_BHJE = (draw.normal(letters).permute(1, 2, 0, 3) for letters in ("QBHE", "JBHE", "JBHE"))
    arguments = {"q_BHQE": q_BHQE, "k_BHJE": k_BHJE, "v_BHJE": v_BHJE, "scale": case["E"] ** -0.5}
    if _is_rotated(case):
        angle_SR = 20 * draw.uniform("SR")
        arguments["rotation"] = (angle_SR.cos(), angle_SR.sin())
    return arguments


def cost(case: Case, dtype: torch.dtype) -> Cost:
    """Two products forward, and four backward: the scores that backward makes again are not counted, nor is rotating:
    six operations a pair where the products have thousands."""
    queries, keys, rows = case.count("QBHE"), case.count("JBHE"), 4 * case.count("QBH")
    rows += 8 * case.count("SR") if _is_rotated(case) else 0  # the two tables
    product = 2 * case.count("BHQ") * case["J"] * case["E"]
    return Cost(
        forward_bytes=dtype.itemsize * (2 * queries + 2 * keys) + rows,
        forward_flops=2 * product,
        backward_bytes=dtype.itemsize * (4 * queries + 4 * keys) + rows,
        backward_flops=4 * product,
    )


def _is_rotated(case: Case) -> bool:
    return bool(case.sizes.get("R"))
