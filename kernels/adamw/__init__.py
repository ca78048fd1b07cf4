"""One optimizer step in one pass over the state: clip, decay, Adam, moving average, low-precision copy.

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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..backend import UP_TO_FP32, Backend
from ..ranks import DEVICE_TYPES
from ..toolchains import cuda_refusal, native_refusal, npu_refusal, npu_triton_refusal, triton_refusal
from ..vendors import apex_refusal


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
        masters: Sequence[Tensor],
        gradients: Sequence[Tensor],
        moments1: Sequence[Tensor],
        moments2: Sequence[Tensor],
        emas: Sequence[Tensor] | None,
        copies: Sequence[Tensor] | None,
        update: AdamWUpdate,
    ) -> None:
        """Updates masters, moments1, moments2, emas and copies in place: tensor i of each belongs to parameter i.

        All the tensors of a weight-decay group come at once, so that a backend may take them in one launch. Each is
        contiguous; parameters have any shapes, those of one index the same number of values.

        Args:
            masters, moments1, moments2: float32 (the reference also float64).
            gradients: one floating dtype, any; only read.
            emas: moving averages of the masters in their dtype, or None.
            copies: what the model computes with, one floating dtype, any, or None if those are the masters themselves.
            update: hyper-parameters, step and clip factor.

        Not differentiable. Whether an update may happen at all (finite gradients) is decided before, by all ranks.
        """
        ...


BACKENDS = (
    Backend.beside(__name__, "cpu_native", ("cpu",), native_refusal),
    Backend.beside(__name__, "gpu_triton", ("cuda",), triton_refusal),
    Backend.beside(__name__, "gpu_cuda", ("cuda",), cuda_refusal),
    Backend.beside(__name__, "torch_fused", ("cpu", "cuda")),
    Backend.beside(__name__, "apex", ("cuda",), apex_refusal),
    Backend.beside(__name__, "npu_fused", ("npu",), npu_refusal, UP_TO_FP32),
    Backend.beside(__name__, "npu_triton", ("npu",), npu_triton_refusal),
    Backend.beside(__name__, "reference", DEVICE_TYPES),
)
