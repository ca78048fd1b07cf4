"""A linear's product and its two gradients by a kernel of ours, where megatron-core's own function would send nothing.

megatron's calls torch's products and overlaps its messages with them; what a rank multiplies by itself may as well be
left to another kernel. The weight's gradient is treated as megatron treats it.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from ..kernels.matrix_product import MatrixProduct


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, product: MatrixProduct, *, fused: bool) -> Tensor:
    """x W^T + b: [..., I] -> [..., O]; `fused`: the weight's gradient goes to weight.main_grad, where that exists.

    A step's first gradient is written over what is there, the next ones are added: nothing need clear a buffer of the
    model's size, and no page of it is touched twice. `finish_gradients` follows the last one.
    """
    return _Linear.apply(x, weight_OI, bias_O, product, fused)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight_OI, bias_O, product, fused):
        ctx.save_for_backward(x, weight_OI)
        ctx.product, ctx.has_bias = product, bias_O is not None
        ctx.main_grad_OI = weight_OI.main_grad if fused and hasattr(weight_OI, "main_grad") else None
        return product(x.flatten(0, -2), weight_OI.t(), bias_O).view(*x.shape[:-1], weight_OI.shape[0])

    @staticmethod
    def backward(ctx, d_y):
        x, weight_OI = ctx.saved_tensors
        d_y_NO = d_y.flatten(0, -2)
        d_x = ctx.product(d_y_NO, weight_OI).view(x.shape) if ctx.needs_input_grad[0] else None
        d_weight_OI = _weight_gradient(ctx, d_y_NO, x.flatten(0, -2), weight_OI) if ctx.needs_input_grad[1] else None
        return d_x, d_weight_OI, d_y_NO.sum(0) if ctx.has_bias else None, None, None


def _weight_gradient(ctx, d_y_NO: Tensor, x_NI: Tensor, weight_OI: Tensor) -> Tensor | None:
    if ctx.main_grad_OI is None:
        return ctx.product(d_y_NO.t(), x_NI)
    # megatron's mark, false from the buffers' reset on.
    ctx.product(d_y_NO.t(), x_NI, sum_NO=ctx.main_grad_OI, is_first=not weight_OI.grad_added_to_main_grad)
    # megatron's buffer waits for the hook of a gradient; by the mark it knows that there is nothing in it to add.
    weight_OI.grad_added_to_main_grad = True
    return torch.empty_like(weight_OI)


def finish_gradients(weights: Iterable[torch.nn.Parameter]) -> None:
    """Zeros for those of `linear`'s fused weights that no sample of this step has reached."""
    for weight_OI in weights:
        if not weight_OI.grad_added_to_main_grad:
            weight_OI.main_grad.zero_()
