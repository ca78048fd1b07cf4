"""AdamW by NVIDIA's apex; clip, average and copy are passes of their own."""

import torch

from .operator import operator
from .passes import average_and_copy, clipped

_VALUES = 2048 * 32
"""Of a block: apex's own choice."""
_DECOUPLED, _CORRECTED = 1, 1
"""AdamW rather than Adam; moments are corrected for their start."""


def kernel(
    masters, gradients, moments1, moments2, emas, copies, clip_factor, lr, beta1, beta2, epsilon, weight_decay, step,
    ema_decay,
):  # fmt: skip
    import amp_C

    overflow = torch.zeros(1, dtype=torch.int32, device=clip_factor.device)
    lists = [clipped(gradients, clip_factor, masters[0].dtype), list(masters), list(moments1), list(moments2)]
    amp_C.multi_tensor_adam(
        _VALUES, overflow, lists, lr, beta1, beta2, epsilon, step, _DECOUPLED, _CORRECTED, weight_decay
    )
    average_and_copy(masters, emas, copies, ema_decay)


adamw = operator("apex", kernel)
