"""Joint attention by the flash kernels that torch itself carries: FlashAttention-2 on CUDA, its own on a CPU.

On CUDA its backward adds d_q with atomics, unless torch.use_deterministic_algorithms(True) asks for the slower way.
"""

import torch
from torch import Tensor

from . import JointAttention
from .vendor import LOW, Vendor, backend


def _forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    if q.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False, scale=scale)
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, False, False, scale=scale)
    return out, lse


def _backward(d_out, q, k, v, out, lse, scale):
    if q.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            d_out, q, k, v, out, lse, 0.0, False, scale=scale
        )
    # Without dropout nobody reads its random state.
    state = torch.empty(2, dtype=torch.uint64, device=q.device)
    unused = torch.empty(0, dtype=torch.uint64, device=q.device)
    return torch.ops.aten._scaled_dot_product_flash_attention_backward(
        d_out, q, k, v, out, lse, cum_seq_q=None, cum_seq_k=None, max_q=q.shape[2], max_k=k.shape[2], dropout_p=0.0,
        is_causal=False, philox_seed=state, philox_offset=unused, scale=scale,
    )  # fmt: skip


_ON_CPU = Vendor(
    name="sdpa_flash_cpu", forward=_forward, backward=_backward, dtypes=(torch.float32, torch.float64, *LOW),
    width_step=1, largest_width=2**31,
)  # fmt: skip
_ON_CUDA = Vendor(name="sdpa_flash", forward=_forward, backward=_backward)
_cpu, _cuda = backend(_ON_CPU), backend(_ON_CUDA)


def joint_attention(q_BHQE: Tensor, k_BHJE: Tensor, v_BHJE: Tensor, *, scale: float) -> tuple[Tensor, Tensor]:
    on_device = _cpu if q_BHQE.device.type == "cpu" else _cuda
    return on_device(q_BHQE, k_BHJE, v_BHJE, scale=scale)


_: JointAttention = joint_attention
