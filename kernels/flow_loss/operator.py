"""flow_loss as a torch.library operator: what a backend's two kernels take and fill."""

from typing import Protocol

from torch import Tensor

from ..operator import define, differentiate
from ..precision import working_dtype
from . import FlowLoss


class Forward(Protocol):
    def __call__(
        self, velocity_SBP: Tensor, x0_BCFYX: Tensor, noise_BCFYX: Tensor, weight_B: Tensor, first_token: int,
        loss_B: Tensor,
    ) -> None:  # fmt: skip
        """loss is float32 (float64 for float64 velocity)."""


class Backward(Protocol):
    def __call__(
        self, d_loss_B: Tensor, velocity_SBP: Tensor, x0_BCFYX: Tensor, noise_BCFYX: Tensor, weight_B: Tensor,
        first_token: int, d_velocity_SBP: Tensor,
    ) -> None:  # fmt: skip
        """d_loss has any stride; d_velocity is contiguous."""


def operator(backend: str, forward: Forward, backward: Backward) -> FlowLoss:
    """The operation by one backend's kernels, differentiable in velocity."""
    forwards = define(
        f"flow_loss_{backend}",
        "(Tensor velocity, Tensor x0, Tensor noise, Tensor weight, int first_token) -> Tensor",
        _outputs,
        forward,
    )
    backwards = define(
        f"flow_loss_{backend}_backward",
        "(Tensor d_loss, Tensor velocity, Tensor x0, Tensor noise, Tensor weight, int first_token) -> Tensor",
        _gradients,
        backward,
    )

    def save(context, inputs, _loss):
        *tensors, context.first_token = inputs
        context.save_for_backward(*tensors)

    def gradients(context, d_loss):
        return backwards(d_loss, *context.saved_tensors, context.first_token), None, None, None, None

    differentiate(forwards, save, gradients)

    def flow_loss(
        velocity_SBP: Tensor, x0_BCFYX: Tensor, noise_BCFYX: Tensor, weight_B: Tensor, *, first_token: int = 0
    ) -> Tensor:
        tokens = velocity_SBP.shape[0]
        there = x0_BCFYX[0, 0].numel() // 4
        assert 0 <= first_token <= there - tokens, (
            f"tokens {first_token} to {first_token + tokens} are not all among the sample's {there}"
        )
        return forwards(velocity_SBP, x0_BCFYX, noise_BCFYX, weight_B, first_token)

    return flow_loss


def _outputs(velocity_SBP, *_rest):
    return velocity_SBP.new_empty(velocity_SBP.shape[1], dtype=working_dtype(velocity_SBP.dtype))


def _gradients(_d_loss_B, velocity_SBP, *_rest):
    return velocity_SBP.new_empty(velocity_SBP.shape)
