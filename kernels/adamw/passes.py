"""What an optimizer step is besides Adam, for vendors whose kernels know no more: a pass over memory each."""

from collections.abc import Sequence

import torch
from torch import Tensor


def clipped(gradients: Sequence[Tensor], clip_factor: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """New gradients, in the masters' dtype: vendors may write into what they are given."""
    copies = [gradient.to(dtype, copy=True) for gradient in gradients]
    torch._foreach_mul_(copies, clip_factor.to(dtype))
    return copies


def average_and_copy(
    masters: Sequence[Tensor], emas: Sequence[Tensor], copies: Sequence[Tensor], ema_decay: float
) -> None:
    if emas:
        torch._foreach_mul_(emas, ema_decay)
        torch._foreach_add_(emas, masters, alpha=1 - ema_decay)
    if copies:
        torch._foreach_copy_(copies, masters)
