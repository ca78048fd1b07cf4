"""gated_residual_norm as a torch.library operator: what a backend's two kernels take and fill."""

from typing import Protocol

import torch
from torch import Tensor

from ..operator import define, differentiate
from ..precision import working_dtype
from . import GatedResidualNorm


class Forward(Protocol):
    def __call__(
        self, x_SBD: Tensor, gate_BD: Tensor, update_SBD: Tensor, shift_BD: Tensor, scale_BD: Tensor, epsilon: float,
        out_SBD: Tensor, normed_SBD: Tensor, mean_SB: Tensor, reciprocal_SB: Tensor,
    ) -> None:  # fmt: skip
        """out and normed are contiguous; mean and reciprocal deviation of each row of out are float32 (float64 for
        float64 inputs)."""


class Backward(Protocol):
    def __call__(
        self, d_out_SBD: Tensor | None, d_normed_SBD: Tensor, out_SBD: Tensor, gate_BD: Tensor, update_SBD: Tensor,
        scale_BD: Tensor, mean_SB: Tensor, reciprocal_SB: Tensor, d_x_SBD: Tensor, d_gate_BD: Tensor,
        d_update_SBD: Tensor, d_shift_BD: Tensor, d_scale_BD: Tensor,
    ) -> None:  # fmt: skip
        """d_out is None if nothing but the norm used out; both have any strides, the gradients are contiguous.

        d_x is d_out plus the gradient through the norm; d_update = gate d_x, d_gate = sum_S(update d_x).
        """


def operator(backend: str, forward: Forward, backward: Backward) -> GatedResidualNorm:
    """The operation by one backend's kernels, differentiable."""
    forwards = define(
        f"gated_residual_norm_{backend}",
        "(Tensor x, Tensor gate, Tensor update, Tensor shift, Tensor scale, float epsilon)"
        " -> (Tensor, Tensor, Tensor, Tensor)",
        _outputs,
        forward,
    )
    backwards = define(
        f"gated_residual_norm_{backend}_backward",
        "(Tensor? d_out, Tensor d_normed, Tensor out, Tensor gate, Tensor update, Tensor scale, Tensor mean,"
        " Tensor reciprocal) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        _gradients,
        backward,
    )

    def save(context, inputs, outputs):
        _x, gate, update, _shift, scale, _epsilon = inputs
        out, _normed, mean, reciprocal = outputs
        context.save_for_backward(out, gate, update, scale, mean, reciprocal)

    def gradients(context, d_out, d_normed, _d_mean, _d_reciprocal):
        saved = context.saved_tensors  # read once: what is made again in backward is made at every reading
        d_normed = torch.zeros_like(saved[0]) if d_normed is None else d_normed
        return *backwards(d_out, d_normed, *saved), None

    differentiate(forwards, save, gradients)

    def gated_residual_norm(
        x_SBD: Tensor, gate_BD: Tensor, update_SBD: Tensor, shift_BD: Tensor, scale_BD: Tensor, *, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        out_SBD, normed_SBD, _, _ = forwards(x_SBD, gate_BD, update_SBD, shift_BD, scale_BD, epsilon)
        return out_SBD, normed_SBD

    return gated_residual_norm


def _outputs(x_SBD, _gate_BD, _update_SBD, _shift_BD, _scale_BD, _epsilon):
    row = x_SBD.new_empty(x_SBD.shape[:2], dtype=working_dtype(x_SBD.dtype))
    return x_SBD.new_empty(x_SBD.shape), x_SBD.new_empty(x_SBD.shape), row, torch.empty_like(row)


def _gradients(_d_out_SBD, _d_normed_SBD, out_SBD, gate_BD, update_SBD, scale_BD, _mean_SB, _reciprocal_SB):
    tokens, row = out_SBD.shape, gate_BD.shape
    return (
        out_SBD.new_empty(tokens),
        gate_BD.new_empty(row),
        update_SBD.new_empty(tokens),
        scale_BD.new_empty(row),
        scale_BD.new_empty(row),
    )
