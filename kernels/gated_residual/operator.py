"""gated_residual as a torch.library operator: what a backend's two kernels take and fill."""

from typing import Protocol

from torch import Tensor

from ..operator import define, differentiate
from . import GatedResidual


class Forward(Protocol):
    def __call__(self, x_SBD: Tensor, gate_BD: Tensor, update_SBD: Tensor, out_SBD: Tensor) -> None:
        """out is contiguous."""


class Backward(Protocol):
    def __call__(
        self, d_out_SBD: Tensor, gate_BD: Tensor, update_SBD: Tensor, d_gate_BD: Tensor, d_update_SBD: Tensor
    ) -> None:
        """d_out has any strides; x's gradient is d_out itself, the others are contiguous."""


def operator(backend: str, forward: Forward, backward: Backward) -> GatedResidual:
    """The operation by one backend's kernels, differentiable."""
    forwards = define(
        f"gated_residual_{backend}", "(Tensor x, Tensor gate, Tensor update) -> Tensor", _outputs, forward
    )
    backwards = define(
        f"gated_residual_{backend}_backward",
        "(Tensor d_out, Tensor gate, Tensor update) -> (Tensor, Tensor)",
        _gradients,
        backward,
    )

    def save(context, inputs, _out):
        context.save_for_backward(*inputs[1:])

    def gradients(context, d_out):
        return d_out, *backwards(d_out, *context.saved_tensors)

    differentiate(forwards, save, gradients)

    def gated_residual(x_SBD: Tensor, gate_BD: Tensor, update_SBD: Tensor) -> Tensor:
        return forwards(x_SBD, gate_BD, update_SBD)

    return gated_residual


def _outputs(x_SBD, _gate_BD, _update_SBD):
    return x_SBD.new_empty(x_SBD.shape)


def _gradients(_d_out_SBD, gate_BD, update_SBD):
    return gate_BD.new_empty(gate_BD.shape), update_SBD.new_empty(update_SBD.shape)
