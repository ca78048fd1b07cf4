"""Joint attention by cuDNN, through torch's scaled_dot_product_attention.

Its backward is not bit-reproducible on every chip (it adds d_q with atomics): tests/benchmarks/h200.sh looks.
"""

import torch
from torch import Tensor

from .vendor import Vendor, backend


def _forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        q, k, v, None, compute_log_sumexp=True, dropout_p=0.0, is_causal=False, return_debug_mask=False, scale=scale
    )
    return out, lse.reshape(q.shape[:3])  # cuDNN keeps an axis of one at the end


def _backward(d_out, q, k, v, out, lse, scale):
    # Without dropout nobody reads the two numbers of its random state; without a mask and with one length for all
    # there are no bias and no offsets.
    unused = torch.zeros((), dtype=torch.int64, device=q.device)
    return torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
        d_out, q, k, v, out, lse.unsqueeze(-1), philox_seed=unused, philox_offset=unused, attn_bias=None,
        cum_seq_q=None, cum_seq_k=None, max_q=q.shape[2], max_k=k.shape[2], dropout_p=0.0, is_causal=False, scale=scale,
    )  # fmt: skip


VENDOR = Vendor(name="sdpa_cudnn", forward=_forward, backward=_backward, largest_width=128)
joint_attention = backend(VENDOR)
