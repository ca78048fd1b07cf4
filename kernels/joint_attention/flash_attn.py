"""Joint attention by Dao-AILab's flash-attn: generation 2, 3 or 4 on sm_90, 4 on sm_100, whichever is here.

Sums in a fixed order are asked for (`deterministic`): on an H100, generation 4 gave the same bits in every repeat.
"""

from importlib import import_module

import torch
from torch import Tensor

from ..vendors import flash_attn_generation, flash_attn_refusal
from .vendor import Vendor, backend

_MODULES = {2: "flash_attn.flash_attn_interface", 3: "flash_attn_interface", 4: "flash_attn.cute.interface"}
_NO_WINDOW = {"window_size_left": -1, "window_size_right": -1, "softcap": 0.0}


def vendor(generation: int) -> Vendor:
    """The functions of one generation, which know tokens before heads: [B, S, H, E]."""
    module = import_module(_MODULES[generation])
    forward, backward = {
        2: (_forward_2, _backward_2), 3: (_forward_3, _backward_3), 4: (_forward_4, _backward_4)
    }[generation]  # fmt: skip

    def tokens_first(tensors) -> list[Tensor]:
        return [tensor.transpose(1, 2) for tensor in tensors]

    def forward_heads_first(q, k, v, scale):
        out, lse = forward(module, *tokens_first((q, k, v)), scale)
        return out.transpose(1, 2), lse

    def backward_heads_first(d_out, q, k, v, out, lse, scale):
        d_out, q, k, v, out = tokens_first((d_out, q, k, v, out))
        return tokens_first(backward(module, d_out, q, k, v, out, lse, scale))

    return Vendor(
        name="flash_attn", forward=forward_heads_first, backward=backward_heads_first,
        largest_width=128 if generation == 4 else 256,
    )  # fmt: skip


def _forward_2(module, q, k, v, scale):
    out, lse, *_ = module._flash_attn_forward(
        q, k, v, 0.0, scale, causal=False, **_NO_WINDOW, alibi_slopes=None, return_softmax=False
    )
    return out, lse


def _backward_2(module, d_out, q, k, v, out, lse, scale):
    gradients = [torch.empty_like(tensor) for tensor in (q, k, v)]
    module._flash_attn_backward(
        d_out, q, k, v, out, lse, *gradients, 0.0, scale, False, **_NO_WINDOW, alibi_slopes=None, deterministic=True
    )
    return gradients


def _forward_3(module, q, k, v, scale):
    out, lse, *_ = module._flash_attn_forward(q, k, v, softmax_scale=scale, causal=False, **_NO_WINDOW)
    return out, lse


def _backward_3(module, d_out, q, k, v, out, lse, scale):
    d_q, d_k, d_v = gradients = [torch.empty_like(tensor) for tensor in (q, k, v)]
    module._flash_attn_backward(
        d_out, q, k, v, out, lse, dq=d_q, dk=d_k, dv=d_v, softmax_scale=scale, is_causal=False, **_NO_WINDOW,
        deterministic=True,
    )  # fmt: skip
    return gradients


def _forward_4(module, q, k, v, scale):
    return module._flash_attn_fwd(q, k, v, softmax_scale=scale, causal=False, return_lse=True)[:2]


def _backward_4(module, d_out, q, k, v, out, lse, scale):
    return module._flash_attn_bwd(q, k, v, out, d_out, lse, softmax_scale=scale, causal=False, deterministic=True)[:3]


if flash_attn_refusal() is None:
    joint_attention = backend(vendor(flash_attn_generation(torch.cuda.get_device_capability()[0])))
