"""One optimizer step in one pass: clip, decay, Adam, moving average, low-precision copy.

    g       = clip_factor * gradient
    master  = (1 - lr * weight_decay) * master
    moment1 = moment1 + (1 - beta1) (g - moment1)
    moment2 = beta2 * moment2 + (1 - beta2) g^2
    master  = master - lr / (1 - beta1^step) * moment1 / (sqrt(moment2) / sqrt(1 - beta2^step) + epsilon)
    ema     = ema_decay * ema + (1 - ema_decay) * master
    copy    = master, rounded to copy's dtype

in this order of operations, which is torch.optim.AdamW's: fp32 results agree to about 1e-7.

Sources: Adam, arXiv 1412.6980, algorithm 1; decoupled weight decay, Loshchilov and Hutter, arXiv 1711.05101,
algorithm 2.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..backend import Backend
from ..ranks import DEVICE_TYPES


@dataclass(frozen=True, kw_only=True, eq=False)
class AdamWUpdate:
    """The numbers of one step, the same for every tensor of a weight-decay group."""

    lr: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    step: int
    """Updates made including this one: counted from 1."""
    clip_factor: Tensor
    """0-D float32 on the tensors' device, in [0, 1]; it never visits the host."""
    ema_decay: float

    def __post_init__(self):
        assert self.step >= 1, f"the first update is step 1, not {self.step}: bias correction divides by 1 - beta^step"


class AdamW(Protocol):
    def __call__(
        self,
        master: Tensor,
        gradient: Tensor,
        moment1: Tensor,
        moment2: Tensor,
        ema: Tensor | None,
        copy: Tensor | None,
        update: AdamWUpdate,
    ) -> None:
        """Updates master, moment1, moment2, ema and copy in place.

        Args:
            master, moment1, moment2: float32 (the reference also float64), one shape of any dimensions.
            gradient: that shape, any floating dtype; only read.
            ema: moving average of master in its dtype, or None.
            copy: the parameter the model computes with, any floating dtype, or None if that is master itself.
            update: hyper-parameters, step and clip factor.

        Not differentiable. Whether an update may happen at all (finite gradients) is decided before, by all ranks.
        """
        ...


BACKENDS = (Backend.beside(__name__, "reference", DEVICE_TYPES),)
