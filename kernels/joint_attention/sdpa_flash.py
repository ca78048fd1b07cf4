"""Joint attention by the FlashAttention-2 kernels that torch itself carries.

Their backward adds d_q with atomics, unless torch.use_deterministic_algorithms(True) asks for the slower way.
"""

import torch
from torch import Tensor

from .vendor import Vendor, backend


def _forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, False, False, scale=scale)
    return out, lse


def _backward(d_out, q, k, v, out, lse, scale):
    # Without dropout nobody reads its random state.
    state, unused = (torch.empty(size, dtype=torch.uint64, device=q.device) for size in (2, 0))
    return torch.ops.aten._scaled_dot_product_flash_attention_backward(
        d_out, q, k, v, out, lse, cum_seq_q=None, cum_seq_k=None, max_q=q.shape[2], max_k=k.shape[2], dropout_p=0.0,
        is_causal=False, philox_seed=state, philox_offset=unused, scale=scale,
    )  # fmt: skip


VENDOR = Vendor(name="sdpa_flash", forward=_forward, backward=_backward)
joint_attention = backend(VENDOR)
