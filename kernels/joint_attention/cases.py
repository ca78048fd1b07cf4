"""Shapes of joint attention: [video ; text] asking, video alone asking (last block), one ring block asking another."""

import torch

from ..case import CONTENTV_CROP, CONTENTV_IMAGE, CONTENTV_VIDEO, ODD, QUICKSTART, SINGLE, Case, Draw


def _video_queries(case: Case) -> Case:
    return case.but("video queries only, joint keys", Q=case["S"])


def _joint_queries(case: Case) -> Case:
    return case.but("joint queries", Q=case["J"])


CASES = (
    *(_joint_queries(case) for case in (QUICKSTART, CONTENTV_CROP, CONTENTV_IMAGE, CONTENTV_VIDEO, ODD, SINGLE)),
    *(_video_queries(case) for case in (QUICKSTART, CONTENTV_CROP, CONTENTV_IMAGE, CONTENTV_VIDEO, ODD)),
    ODD.but("more queries than keys", Q=23, J=5),
)


def inputs(case: Case, *, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> dict:
    """Keyword arguments, strided as the model hands them over: tokens come sequence-first, [S, B, H, E]."""
    draw = Draw(case, dtype, device, seed)
    q_BHQE, k_BHJE, v_BHJE = (draw.normal(letters).permute(1, 2, 0, 3) for letters in ("QBHE", "JBHE", "JBHE"))
    return {"q_BHQE": q_BHQE, "k_BHJE": k_BHJE, "v_BHJE": v_BHJE, "scale": case["E"] ** -0.5}
