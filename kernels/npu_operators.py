"""Every call of torch_npu's own operators, in one place: each name, keyword and result that the engine relies on.

torch_npu is not imported here: the operators are in `torch.ops.npu` once it is loaded. tests/ascend/test_schemas.py
binds each function to the schemas of two releases; what is not written here is bound by nothing.
"""

import torch
from torch import Tensor

STATISTICS = 8
"""The attention operators keep each row's maximum and sum so many times over, one block of 32 bytes."""


def attention(q_BHQE: Tensor, k_BHJE: Tensor, v_BHJE: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """(out_BHQE, maximum, sum): of each row of scaled scores and their exponentials, float32 [B, H, Q, 8]."""
    out, maximum, total, *_ = torch.ops.npu.npu_fusion_attention(
        q_BHQE, k_BHJE, v_BHJE, head_num=q_BHQE.shape[1], input_layout="BNSD", scale=scale
    )
    return out, maximum, total


def attention_gradients(
    d_out_BHQE: Tensor, q_BHQE: Tensor, k_BHJE: Tensor, v_BHJE: Tensor, out_BHQE: Tensor, maximum: Tensor,
    total: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(d_q, d_k, d_v) of `attention`; its scale is called scale_value here."""
    d_q, d_k, d_v, *_ = torch.ops.npu.npu_fusion_attention_grad(
        q_BHQE, k_BHJE, v_BHJE, d_out_BHQE, head_num=q_BHQE.shape[1], input_layout="BNSD", softmax_max=maximum,
        softmax_sum=total, attention_in=out_BHQE, scale_value=scale,
    )  # fmt: skip
    return d_q, d_k, d_v


def rms_norm(x: Tensor, gain_E: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """(normalised, reciprocal root mean squares with a last axis of 1, float32); gain is of x's dtype."""
    return torch.ops.npu.npu_rms_norm(x, gain_E, epsilon=epsilon)


def rms_norm_gradients(d_out: Tensor, x: Tensor, gain_E: Tensor, reciprocal: Tensor) -> tuple[Tensor, Tensor]:
    """(d_x, d_gain in float32)."""
    return torch.ops.npu.npu_rms_norm_backward(d_out, x, gain_E, reciprocal)


def rotated_halves(x_SBHE: Tensor, cos_S11E: Tensor, sin_S11E: Tensor) -> Tensor:
    """cos x + sin (-second half, first half); all of one dtype. With -sin it is its own transpose."""
    return torch.ops.npu.npu_rotary_mul(x_SBHE, cos_S11E, sin_S11E, rotary_mode="half")


def adam_w(
    master: Tensor, gradient: Tensor, moment1: Tensor, moment2: Tensor, *, lr: float, beta1: float, beta2: float,
    epsilon: float, weight_decay: float, step: int,
) -> None:  # fmt: skip
    """One update in place, counted from 1. The operator takes the powers of the betas before this step."""
    torch.ops.npu.npu_apply_adam_w.out(
        beta1 ** (step - 1), beta2 ** (step - 1), lr, weight_decay, beta1, beta2, epsilon, gradient, None, False,
        False, var=master, m=moment1, v=moment2,
    )  # fmt: skip
