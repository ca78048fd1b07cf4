"""What other people's attention functions have in common, and how each becomes a backend.

They take fewer dtypes and widths than the contract, and none takes a gradient of lse. Both are met by more channels:
zeros in q, k and v change no score and no output. For a gradient of lse one more channel holds 1 in d_out, -d_lse in
out and 0 in v: all that a backward does with `out` is delta = sum_E(out * d_out), which is then the contract's.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, contiguous_format
from torch.nn.functional import pad

from ..vendors import LOW
from . import JointAttention
from .operator import operator


@dataclass(frozen=True, kw_only=True)
class Vendor:
    """An attention function as a library has it, everything as [B, H, S, E], lse [B, H, Q] in natural logarithms."""

    name: str
    forward: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    """(q, k, v, scale) -> (out, lse)."""
    backward: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor, Tensor]]
    """(d_out, q, k, v, out, lse, scale) -> (d_q, d_k, d_v)."""
    dtypes: tuple[torch.dtype, ...] = LOW
    width_step: int = 8
    """Head widths are multiples of this."""
    largest_width: int = 256
    others: str = "gpu_triton or reference"
    """Backends that take what this one does not."""

    def padding(self, width: int, more: int = 0) -> int:
        """Channels to add to `width` so that at least `more` are there. ValueError if there is no room."""
        needed = -(-(width + more) // self.width_step) * self.width_step
        if needed > self.largest_width:
            what = "gradients through lse need a channel more" if more else "that is too wide"
            raise ValueError(
                f"the head width is {width}; {self.name} takes up to {self.largest_width} ({what}): wish for "
                f"joint_attention={self.others}"
            )
        return needed - width

    def check(self, q_BHQE: Tensor) -> None:
        if q_BHQE.dtype not in self.dtypes:
            raise ValueError(
                f"queries are {q_BHQE.dtype}; {self.name} takes {', '.join(map(str, self.dtypes))}: train in bf16, or "
                f"wish for joint_attention={self.others}"
            )


def backend(vendor: Vendor) -> JointAttention:
    """The operation by a vendor's functions."""

    def forward(q_BHQE, k_BHJE, v_BHJE, scale, out_BHQE, lse_BHQ):
        vendor.check(q_BHQE)
        width = q_BHQE.shape[-1]
        q, k, v = _widened((q_BHQE, k_BHJE, v_BHJE), vendor.padding(width))
        out, lse = vendor.forward(q, k, v, scale)
        out_BHQE.copy_(out[..., :width])
        lse_BHQ.copy_(lse)

    def backward(d_out_BHQE, d_lse_BHQ, q_BHQE, k_BHJE, v_BHJE, out_BHQE, lse_BHQ, scale, d_q_BHQE, d_k_BHJE, d_v_BHJE):
        width = q_BHQE.shape[-1]
        channels = vendor.padding(width, more=0 if d_lse_BHQ is None else 1)
        q, k, v, out, d_out = _widened((q_BHQE, k_BHJE, v_BHJE, out_BHQE, d_out_BHQE), channels)
        if d_lse_BHQ is not None:
            out[..., width] = -d_lse_BHQ.to(out.dtype)
            d_out[..., width] = 1
        gradients = vendor.backward(d_out, q, k, v, out, lse_BHQ, scale)
        for filled, gradient in zip((d_q_BHQE, d_k_BHJE, d_v_BHJE), gradients, strict=True):
            filled.copy_(gradient[..., :width])

    return operator(vendor.name, forward, backward)


def _widened(tensors: tuple[Tensor, ...], channels: int) -> tuple[Tensor, ...]:
    """With zeros behind the last channel; as they lie where that is what all of them ask, else copied."""
    if channels:
        return tuple(pad(tensor, (0, channels)) for tensor in tensors)
    return tuple(tensor if _is_aligned(tensor) else tensor.clone(memory_format=contiguous_format) for tensor in tensors)


def _is_aligned(tensor: Tensor) -> bool:
    """The last axis lies closely, and every row begins at a multiple of 16 bytes: at others cuDNN's results are wrong
    without a word, and torch's flash attention brings the whole process down (both seen on an H100)."""
    steps = [step * tensor.element_size() for step in tensor.stride()[:-1]]
    return tensor.stride(-1) == 1 and all(place % 16 == 0 for place in (tensor.data_ptr(), *steps))
