"""modulated_norm as a torch.library operator: what a backend's two kernels take and fill."""

from typing import Protocol

import torch
from torch import Tensor

from ..operator import define, differentiate
from ..precision import working_dtype
from . import ModulatedNorm


class Forward(Protocol):
    def __call__(
        self, x_SBD: Tensor, shift_BD: Tensor, scale_BD: Tensor, epsilon: float, out_SBD: Tensor, mean_SB: Tensor,
        reciprocal_SB: Tensor,
    ) -> None:  # fmt: skip
        """out is contiguous; mean and reciprocal deviation of each row are float32 (float64 for float64 inputs)."""


class Backward(Protocol):
    def __call__(
        self, d_out_SBD: Tensor, x_SBD: Tensor, scale_BD: Tensor, mean_SB: Tensor, reciprocal_SB: Tensor,
        d_x_SBD: Tensor, d_shift_BD: Tensor, d_scale_BD: Tensor,
    ) -> None:  # fmt: skip
        """d_out has any strides; the gradients are contiguous, in the dtypes of x and scale."""


def operator(backend: str, forward: Forward, backward: Backward) -> ModulatedNorm:
    """The operation by one backend's kernels, differentiable."""
    forwards = define(
        f"modulated_norm_{backend}",
        "(Tensor x, Tensor shift, Tensor scale, float epsilon) -> (Tensor, Tensor, Tensor)",
        _outputs,
        forward,
    )
    backwards = define(
        f"modulated_norm_{backend}_backward",
        "(Tensor d_out, Tensor x, Tensor scale, Tensor mean, Tensor reciprocal) -> (Tensor, Tensor, Tensor)",
        _gradients,
        backward,
    )

    def save(context, inputs, outputs):
        x, _shift, scale, _epsilon = inputs
        _out, mean, reciprocal = outputs
        context.save_for_backward(x, scale, mean, reciprocal)

    def gradients(context, d_out, _d_mean, _d_reciprocal):
        return *backwards(d_out, *context.saved_tensors), None

    differentiate(forwards, save, gradients)

    def modulated_norm(x_SBD: Tensor, shift_BD: Tensor, scale_BD: Tensor, *, epsilon: float) -> Tensor:
        return forwards(x_SBD, shift_BD, scale_BD, epsilon)[0]

    return modulated_norm


def _outputs(x_SBD, _shift_BD, _scale_BD, _epsilon):
    row = x_SBD.new_empty(x_SBD.shape[:2], dtype=working_dtype(x_SBD.dtype))
    return x_SBD.new_empty(x_SBD.shape), row, torch.empty_like(row)


def _gradients(_d_out_SBD, x_SBD, scale_BD, _mean_SB, _reciprocal_SB):
    return x_SBD.new_empty(x_SBD.shape), scale_BD.new_empty(scale_BD.shape), scale_BD.new_empty(scale_BD.shape)
