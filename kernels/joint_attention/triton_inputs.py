"""What both attentions in Triton take, whatever the chip."""

from torch import Tensor

from ..backend import UP_TO_FP32

WIDEST = 128
"""Values of a head: what a block of queries and keys leaves room for."""


def rows_together(tensor_BHSE: Tensor) -> Tensor:
    """With the last stride 1: the kernels read whole rows."""
    return tensor_BHSE if tensor_BHSE.stride(3) == 1 else tensor_BHSE.contiguous()


def check(backend: str, q_BHQE: Tensor, scale: float) -> None:
    """Raises ValueError for what the kernels cannot take."""
    width, dtype = q_BHQE.shape[-1], q_BHQE.dtype
    given = None
    if dtype not in UP_TO_FP32:
        given = f"dtype {dtype}; allowed: {', '.join(map(str, UP_TO_FP32))}"
    elif width > WIDEST:
        given = f"head width {width}; allowed: up to {WIDEST}"
    elif not scale > 0:
        given = f"scale {scale}; allowed: above 0 (a row's largest score is looked for before scaling)"
    if given:
        raise ValueError(f"joint_attention by {backend}: {given}; the backend reference takes it")
