"""Rotation of the video tokens that come first among queries and keys: what is allowed, and how it is done ahead of
the backends that have no kernel to rotate in.
"""

import torch
from torch import Tensor

from ..precision import working_dtype
from ..rotation import rotate_halves

Rotation = tuple[Tensor, Tensor]
"""(cos_SR, sin_SR)."""


def check_rotation(q_BHQE: Tensor, k_BHJE: Tensor, rotation: Rotation) -> None:
    """Raises ValueError for tables that do not fit queries and keys."""
    cos_SR, sin_SR = rotation
    queries, width = q_BHQE.shape[2:]
    keys = k_BHJE.shape[2]
    rotatable = min(queries, keys)
    fits = cos_SR.dim() == 2 and cos_SR.shape == sin_SR.shape and 2 * cos_SR.shape[1] == width
    if not fits or cos_SR.shape[0] > rotatable:
        raise ValueError(
            f"joint_attention: the rotation has tables {tuple(cos_SR.shape)} and {tuple(sin_SR.shape)} for {queries} "
            f"queries and {keys} keys of {width} values; allowed: two tables [S, R], S up to {rotatable} video tokens, "
            "R half the values; turn others before (qk_norm_rope)"
        )
    kinds = {torch.float32, working_dtype(q_BHQE.dtype)}
    if cos_SR.dtype != sin_SR.dtype or cos_SR.dtype not in kinds:
        raise ValueError(
            f"joint_attention: the rotation's tables are {cos_SR.dtype} and {sin_SR.dtype}; allowed: "
            f"{' or '.join(sorted(map(str, kinds)))} for both; angles in fewer bits would be other positions"
        )


def rotate_before(q_BHQE: Tensor, k_BHJE: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
    """Queries and keys with the first S turned: computed in fp32, rounded to their dtype. Differentiable."""
    return _rotate_first(q_BHQE, *rotation), _rotate_first(k_BHJE, *rotation)


def _rotate_first(x_BHJE: Tensor, cos_SR: Tensor, sin_SR: Tensor) -> Tensor:
    video_BHSE, rest_BHTE = x_BHJE.tensor_split([cos_SR.shape[0]], dim=2)
    turned_BHSE = rotate_halves(video_BHSE.to(working_dtype(x_BHJE.dtype)), cos_SR, sin_SR)
    return torch.cat((turned_BHSE.to(x_BHJE.dtype), rest_BHTE), dim=2)
