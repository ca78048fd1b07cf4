"""AdamW by CANN's ApplyAdamW, a tensor at a time; clip, average and copy, which it does not know, are passes.

It reads the powers of the betas as they were before the step (CANN's aclnnApplyAdamW: beta^(t-1)) and computes as the
contract does, decay first.
"""

from ..npu_operators import adam_w
from .operator import operator
from .passes import average_and_copy, clipped


def kernel(
    masters, gradients, moments1, moments2, emas, copies, clip_factor, lr, beta1, beta2, epsilon, weight_decay, step,
    ema_decay,
):  # fmt: skip
    small = clipped(gradients, clip_factor, masters[0].dtype)
    for master, gradient, moment1, moment2 in zip(masters, small, moments1, moments2, strict=True):
        adam_w(
            master, gradient.view_as(master), moment1, moment2, lr=lr, beta1=beta1, beta2=beta2, epsilon=epsilon,
            weight_decay=weight_decay, step=step,
        )  # fmt: skip
    average_and_copy(masters, emas, copies, ema_decay)


adamw = operator("npu_fused", kernel)
