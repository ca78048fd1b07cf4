"""joint_attention as a torch.library operator: what a backend's kernels take and fill, and who rotates."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ..operator import define, differentiate
from ..precision import working_dtype
from . import JointAttention
from .rotation import check_rotation, rotate_before


class Forward(Protocol):
    def __call__(
        self, q_BHQE: Tensor, k_BHJE: Tensor, v_BHJE: Tensor, scale: float, out_BHQE: Tensor, lse_BHQ: Tensor
    ) -> None:
        """out lies in memory as [Q, B, H, E], as the model goes on with it; lse is contiguous float32 (float64 for
        float64 inputs)."""


class Backward(Protocol):
    def __call__(
        self, d_out_BHQE: Tensor, d_lse_BHQ: Tensor | None, q_BHQE: Tensor, k_BHJE: Tensor, v_BHJE: Tensor,
        out_BHQE: Tensor, lse_BHQ: Tensor, scale: float, d_q_BHQE: Tensor, d_k_BHJE: Tensor, d_v_BHJE: Tensor,
    ) -> None:  # fmt: skip
        """d_out has any strides; d_lse is None if nothing used lse. The gradients lie in memory as [Q or J, B, H, E].

        With `out` and `lse` of a whole row of keys and k, v a part of them, the gradients are that part's: a ring of
        ranks asks so, block by block.
        """


class RotatingForward(Protocol):
    def __call__(
        self, q_BHQE: Tensor, k_BHJE: Tensor, v_BHJE: Tensor, cos_SR: Tensor, sin_SR: Tensor, scale: float,
        out_BHQE: Tensor, lse_BHQ: Tensor,
    ) -> None:  # fmt: skip
        """As Forward; the first S queries and keys are turned where they are read. The tables have any strides."""


class RotatingBackward(Protocol):
    def __call__(
        self, d_out_BHQE: Tensor, d_lse_BHQ: Tensor | None, q_BHQE: Tensor, k_BHJE: Tensor, v_BHJE: Tensor,
        cos_SR: Tensor, sin_SR: Tensor, out_BHQE: Tensor, lse_BHQ: Tensor, scale: float, d_q_BHQE: Tensor,
        d_k_BHJE: Tensor, d_v_BHJE: Tensor,
    ) -> None:  # fmt: skip
        """As Backward, of the q and k that came: their gradients are turned back."""


def operator(
    backend: str,
    forward: Forward,
    backward: Backward,
    rotating: tuple[RotatingForward, RotatingBackward] | None = None,
) -> JointAttention:
    """The operation by one backend's kernels, differentiable.

    Args:
        rotating: its kernels that rotate inside; without them queries and keys are rotated before, in plain torch.
    """
    forwards, backwards = _differentiable(f"joint_attention_{backend}", forward, backward)
    if rotating:
        rotated, _ = _differentiable(f"joint_attention_{backend}_rotated", *rotating, tables=" Tensor cos, Tensor sin,")

    def alone(
        d_out_BHQE: Tensor,
        d_lse_BHQ: Tensor | None,
        q_BHQE: Tensor,
        k_BHJE: Tensor,
        v_BHJE: Tensor,
        out_BHQE: Tensor,
        lse_BHQ: Tensor,
        *,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return backwards(d_out_BHQE, d_lse_BHQ, q_BHQE, k_BHJE, v_BHJE, out_BHQE, lse_BHQ, scale)

    def joint_attention(
        q_BHQE: Tensor,
        k_BHJE: Tensor,
        v_BHJE: Tensor,
        *,
        scale: float,
        rotation: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        if rotation is not None:
            check_rotation(q_BHQE, k_BHJE, rotation)
            if rotating:
                return rotated(q_BHQE, k_BHJE, v_BHJE, *rotation, scale)
            q_BHQE, k_BHJE = rotate_before(q_BHQE, k_BHJE, rotation)
        return forwards(q_BHQE, k_BHJE, v_BHJE, scale)

    joint_attention.backward = alone
    return joint_attention


def _differentiable(name: str, forward: Callable, backward: Callable, tables: str = "") -> tuple[Callable, Callable]:
    """Forward and backward as operators, the one the gradient of the other. `tables`: what the schemas have after v."""
    forwards = define(
        name, f"(Tensor q, Tensor k, Tensor v,{tables} float scale) -> (Tensor, Tensor)", _outputs, forward
    )
    backwards = define(
        f"{name}_backward",
        f"(Tensor d_out, Tensor? d_lse, Tensor q, Tensor k, Tensor v,{tables} Tensor out, Tensor lse, float scale)"
        " -> (Tensor, Tensor, Tensor)",
        _gradients,
        backward,
    )

    def save(context, inputs, outputs):
        *tensors, context.scale = inputs
        context.save_for_backward(*tensors, *outputs)

    def gradients(context, d_out, d_lse):
        saved = context.saved_tensors  # read once: what is made again in backward is made at every reading
        *given, out, _lse = saved
        d_out = torch.zeros_like(out) if d_out is None else d_out
        found = backwards(d_out, d_lse, *saved, context.scale)
        return *found, *[None] * (len(given) - len(found)), None  # none for the tables, none for the scale

    differentiate(forwards, save, gradients)
    return forwards, backwards


def tokens_first(like_BHSE: Tensor) -> Tensor:
    """An empty [B, H, S, E] that lies in memory as [S, B, H, E]."""
    batch, heads, tokens, width = like_BHSE.shape
    return like_BHSE.new_empty(tokens, batch, heads, width).permute(1, 2, 0, 3)


def _outputs(q_BHQE, *_rest):
    return tokens_first(q_BHQE), q_BHQE.new_empty(q_BHQE.shape[:3], dtype=working_dtype(q_BHQE.dtype))


def _gradients(_d_out, _d_lse, q_BHQE, k_BHJE, v_BHJE, *_rest):
    return tokens_first(q_BHQE), tokens_first(k_BHJE), tokens_first(v_BHJE)
