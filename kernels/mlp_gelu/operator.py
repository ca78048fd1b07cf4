"""mlp_gelu as a torch.library operator: what a backend's two kernels take and fill."""

from typing import Protocol

from torch import Tensor

from ..operator import define, differentiate
from . import MlpGelu


class Forward(Protocol):
    def __call__(self, hidden_SBM: Tensor, bias_M: Tensor, out_SBM: Tensor) -> None:
        """out is contiguous."""


class Backward(Protocol):
    def __call__(
        self, d_out_SBM: Tensor, hidden_SBM: Tensor, bias_M: Tensor, d_hidden_SBM: Tensor, d_bias_M: Tensor
    ) -> None:
        """d_out has any strides; the gradients are contiguous."""


def operator(backend: str, forward: Forward, backward: Backward) -> MlpGelu:
    """The operation by one backend's kernels, differentiable."""
    forwards = define(f"mlp_gelu_{backend}", "(Tensor hidden, Tensor bias) -> Tensor", _outputs, forward)
    backwards = define(
        f"mlp_gelu_{backend}_backward",
        "(Tensor d_out, Tensor hidden, Tensor bias) -> (Tensor, Tensor)",
        _gradients,
        backward,
    )

    def save(context, inputs, _out):
        context.save_for_backward(*inputs)

    def gradients(context, d_out):
        return backwards(d_out, *context.saved_tensors)

    differentiate(forwards, save, gradients)

    def mlp_gelu(hidden_SBM: Tensor, bias_M: Tensor) -> Tensor:
        return forwards(hidden_SBM, bias_M)

    return mlp_gelu


def _outputs(hidden_SBM, _bias_M):
    return hidden_SBM.new_empty(hidden_SBM.shape)


def _gradients(_d_out_SBM, hidden_SBM, bias_M):
    return hidden_SBM.new_empty(hidden_SBM.shape), bias_M.new_empty(bias_M.shape)
