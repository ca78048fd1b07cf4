"""qk_norm_rope as a torch.library operator: what a backend's two kernels take and fill."""

from typing import Protocol

import torch
from torch import Tensor

from ..operator import define, differentiate
from ..precision import working_dtype
from . import QkNormRope


class Forward(Protocol):
    def __call__(
        self, q_SBHE: Tensor, k_SBHE: Tensor, q_gain_E: Tensor, k_gain_E: Tensor, cos_SR: Tensor | None,
        sin_SR: Tensor | None, epsilon: float, q_out_SBHE: Tensor, k_out_SBHE: Tensor, q_reciprocal_SBH: Tensor,
        k_reciprocal_SBH: Tensor,
    ) -> None:  # fmt: skip
        """q_out and k_out are contiguous; the reciprocal root mean squares are float32 (float64 for float64 inputs)."""


class Backward(Protocol):
    def __call__(
        self, d_q_out_SBHE: Tensor, d_k_out_SBHE: Tensor, q_SBHE: Tensor, k_SBHE: Tensor, q_gain_E: Tensor,
        k_gain_E: Tensor, cos_SR: Tensor | None, sin_SR: Tensor | None, q_reciprocal_SBH: Tensor,
        k_reciprocal_SBH: Tensor, d_q_SBHE: Tensor, d_k_SBHE: Tensor, d_q_gain_E: Tensor, d_k_gain_E: Tensor,
    ) -> None:  # fmt: skip
        """d_q_out and d_k_out have any strides; the gradients are contiguous."""


def operator(backend: str, forward: Forward, backward: Backward) -> QkNormRope:
    """The operation by one backend's kernels, differentiable."""
    forwards = define(
        f"qk_norm_rope_{backend}",
        "(Tensor q, Tensor k, Tensor q_gain, Tensor k_gain, Tensor? cos, Tensor? sin, float epsilon)"
        " -> (Tensor, Tensor, Tensor, Tensor)",
        _outputs,
        forward,
    )
    backwards = define(
        f"qk_norm_rope_{backend}_backward",
        "(Tensor d_q_out, Tensor d_k_out, Tensor q, Tensor k, Tensor q_gain, Tensor k_gain, Tensor? cos, Tensor? sin,"
        " Tensor q_reciprocal, Tensor k_reciprocal) -> (Tensor, Tensor, Tensor, Tensor)",
        _gradients,
        backward,
    )

    def save(context, inputs, outputs):
        _q_out, _k_out, q_reciprocal, k_reciprocal = outputs
        context.save_for_backward(*inputs[:6], q_reciprocal, k_reciprocal)

    def gradients(context, d_q_out, d_k_out, _d_q_reciprocal, _d_k_reciprocal):
        q, k = context.saved_tensors[:2]
        d_q_out = torch.zeros_like(q) if d_q_out is None else d_q_out
        d_k_out = torch.zeros_like(k) if d_k_out is None else d_k_out
        return *backwards(d_q_out, d_k_out, *context.saved_tensors), None, None, None

    differentiate(forwards, save, gradients)

    def qk_norm_rope(
        q_SBHE: Tensor,
        k_SBHE: Tensor,
        q_gain_E: Tensor,
        k_gain_E: Tensor,
        rotation: tuple[Tensor, Tensor] | None,
        *,
        epsilon: float,
    ) -> tuple[Tensor, Tensor]:
        cos_SR, sin_SR = rotation or (None, None)
        q_out, k_out, _, _ = forwards(q_SBHE, k_SBHE, q_gain_E, k_gain_E, cos_SR, sin_SR, epsilon)
        return q_out, k_out

    return qk_norm_rope


def _outputs(q_SBHE, k_SBHE, _q_gain_E, _k_gain_E, _cos_SR, _sin_SR, _epsilon):
    row = q_SBHE.new_empty(q_SBHE.shape[:3], dtype=working_dtype(q_SBHE.dtype))
    return q_SBHE.new_empty(q_SBHE.shape), k_SBHE.new_empty(k_SBHE.shape), row, torch.empty_like(row)


def _gradients(_d_q_out, _d_k_out, q_SBHE, k_SBHE, q_gain_E, k_gain_E, *_rest):
    return (
        q_SBHE.new_empty(q_SBHE.shape),
        k_SBHE.new_empty(k_SBHE.shape),
        q_gain_E.new_empty(q_gain_E.shape),
        k_gain_E.new_empty(k_gain_E.shape),
    )
