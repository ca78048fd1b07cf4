"""QK-RMSNorm and rotation by CANN's RmsNorm and RotaryPositionEmbedding, through torch_npu.

Two operators, and both round to their inputs' dtype: they are given fp32, so that only the result is rounded. What that
costs is memory traffic, which a kernel of one pass (npu_triton) saves. The gains' gradients repeat their bits where
CANN was told to (kernels/device.py, `repeat_bits`).
"""

import torch
from torch import Tensor

from .. import npu_operators
from .operator import operator

MOST = 1000
"""Below so many samples, and heads, npu_rotary_mul takes; head widths below 896."""


def _tables(cos_SR: Tensor, sin_SR: Tensor) -> tuple[Tensor, Tensor]:
    """Both halves of a head turn by the same angles: [S, 1, 1, E]."""
    cos_SE, sin_SE = (torch.cat((table.float(), table.float()), -1) for table in (cos_SR, sin_SR))
    return cos_SE[:, None, None], sin_SE[:, None, None]


def _check(x_SBHE: Tensor) -> None:
    _, batch, heads, width = x_SBHE.shape
    if batch >= MOST or heads >= MOST or width >= 896:
        raise ValueError(
            f"there are {batch} samples of {heads} heads {width} wide; npu_fused takes fewer than {MOST} of both, "
            "narrower than 896: wish for qk_norm_rope=npu_triton or reference"
        )


def forward(q, k, q_gain_E, k_gain_E, cos_SR, sin_SR, epsilon, q_out, k_out, q_reciprocal_SBH, k_reciprocal_SBH):
    for x_SBHE, gain_E, out_SBHE, reciprocal_SBH in (
        (q, q_gain_E, q_out, q_reciprocal_SBH),
        (k, k_gain_E, k_out, k_reciprocal_SBH),
    ):
        _check(x_SBHE)
        normed, reciprocal = npu_operators.rms_norm(x_SBHE.float().contiguous(), gain_E.float(), epsilon)
        if cos_SR is not None:
            normed = npu_operators.rotated_halves(normed, *_tables(cos_SR, sin_SR))
        out_SBHE.copy_(normed)
        reciprocal_SBH.copy_(reciprocal.view(reciprocal_SBH.shape))


def backward(
    d_q_out, d_k_out, q, k, q_gain_E, k_gain_E, cos_SR, sin_SR, q_reciprocal_SBH, k_reciprocal_SBH, d_q, d_k, d_q_gain,
    d_k_gain,
):  # fmt: skip
    for d_out_SBHE, x_SBHE, gain_E, reciprocal_SBH, d_x_SBHE, d_gain_E in (
        (d_q_out, q, q_gain_E, q_reciprocal_SBH, d_q, d_q_gain),
        (d_k_out, k, k_gain_E, k_reciprocal_SBH, d_k, d_k_gain),
    ):
        d_normed = d_out_SBHE.float().contiguous()
        if cos_SR is not None:
            cos, sin = _tables(cos_SR, sin_SR)
            d_normed = npu_operators.rotated_halves(d_normed, cos, -sin)
        d_x, d_gain = npu_operators.rms_norm_gradients(
            d_normed, x_SBHE.float().contiguous(), gain_E.float(), reciprocal_SBH.unsqueeze(-1)
        )
        d_x_SBHE.copy_(d_x)
        d_gain_E.copy_(d_gain)


qk_norm_rope = operator("npu_fused", forward, backward)
