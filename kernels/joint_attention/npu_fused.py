"""Joint attention by CANN's FlashAttentionScore, through torch_npu's npu_fusion_attention and its gradient.

It keeps the maximum and the sum of every row apart; lse is their join, and with lse for a maximum and 1 for a sum its
gradient makes the same weights: exp(score - lse) / 1. Its gradient repeats its bits where CANN was told to
(kernels/device.py, `repeat_bits`).
"""

import torch
from torch import Tensor

from .. import npu_operators
from ..backend import UP_TO_FP32
from ..npu_operators import STATISTICS
from .vendor import Vendor, backend


def _forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, maximum, total = npu_operators.attention(q, k, v, scale)
    return out, maximum[..., 0] + total[..., 0].log()


def _backward(d_out, q, k, v, out, lse, scale):
    statistics = lse.unsqueeze(-1).expand(*lse.shape, STATISTICS).contiguous()
    return npu_operators.attention_gradients(d_out, q, k, v, out, statistics, torch.ones_like(statistics), scale)


VENDOR = Vendor(
    name="npu_fused",
    forward=_forward,
    backward=_backward,
    dtypes=UP_TO_FP32,
    width_step=16,  # a cube's edge at 16 bits
    largest_width=768,
    others="npu_triton or reference",
)
joint_attention = backend(VENDOR)
