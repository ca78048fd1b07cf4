"""Joint attention by torch's own flash kernel for the CPU."""

import torch
from torch import Tensor

from .vendor import LOW, Vendor, backend


def _forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False, scale=scale)


def _backward(d_out, q, k, v, out, lse, scale):
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        d_out, q, k, v, out, lse, 0.0, False, scale=scale
    )


joint_attention = backend(
    Vendor(
        name="sdpa_flash_cpu", forward=_forward, backward=_backward, dtypes=(torch.float32, torch.float64, *LOW),
        width_step=1, largest_width=2**31,
    )
)  # fmt: skip
