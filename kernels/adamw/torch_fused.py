"""AdamW by torch's fused kernel; clip, average and copy are passes of their own, which it does not know."""

import torch

from .operator import operator
from .passes import average_and_copy, clipped


def kernel(
    masters, gradients, moments1, moments2, emas, copies, clip_factor, lr, beta1, beta2, epsilon, weight_decay, step,
    ema_decay,
):  # fmt: skip
    count = torch.full((), float(step), device=clip_factor.device)
    torch._fused_adamw_(
        masters, clipped(gradients, clip_factor, masters[0].dtype), moments1, moments2, [], [count] * len(masters),
        lr=lr, beta1=beta1, beta2=beta2, weight_decay=weight_decay, eps=epsilon, amsgrad=False, maximize=False,
    )  # fmt: skip
    average_and_copy(masters, emas, copies, ema_decay)


adamw = operator("torch_fused", kernel)
