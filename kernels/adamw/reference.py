"""AdamW in plain torch, one tensor at a time."""

from collections.abc import Sequence
from itertools import repeat

import torch
from torch import Tensor

from . import AdamWUpdate


@torch.no_grad()
def adamw(
    masters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    moments1: Sequence[Tensor],
    moments2: Sequence[Tensor],
    emas: Sequence[Tensor] | None,
    copies: Sequence[Tensor] | None,
    update: AdamWUpdate,
) -> None:
    states = zip(masters, gradients, moments1, moments2, strict=True)
    for state, ema, copy in zip(states, emas or repeat(None), copies or repeat(None), strict=False):
        _update_one(*state, ema, copy, update)


def _update_one(
    master: Tensor,
    gradient: Tensor,
    moment1: Tensor,
    moment2: Tensor,
    ema: Tensor | None,
    copy: Tensor | None,
    update: AdamWUpdate,
) -> None:
    clipped = gradient.to(master.dtype) * update.clip_factor.to(master.dtype)
    correction1 = 1 - update.beta1**update.step
    correction2 = 1 - update.beta2**update.step
    master.mul_(1 - update.lr * update.weight_decay)
    moment1.lerp_(clipped, 1 - update.beta1)
    moment2.mul_(update.beta2).addcmul_(clipped, clipped, value=1 - update.beta2)
    denominator = (moment2.sqrt() / correction2**0.5).add_(update.epsilon)
    master.addcdiv_(moment1, denominator, value=-update.lr / correction1)
    if ema is not None:
        ema.mul_(update.ema_decay).add_(master, alpha=1 - update.ema_decay)
    if copy is not None:
        copy.copy_(master)
