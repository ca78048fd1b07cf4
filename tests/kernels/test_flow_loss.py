"""Flow loss against the mean over the unpatchified latent."""

import pytest
import torch

from contentv.kernels.case import ODD
from contentv.kernels.flow_loss.cases import CASES, inputs
from contentv.kernels.flow_loss.reference import flow_loss


def oracle(velocity_SBP, x0_BCFYX, noise_BCFYX, weight_B, *, first_token):
    """Token by token and value by value, by division with remainder, from the latent's side."""
    _, channels, frames, rows, columns = x0_BCFYX.shape
    f, y, x = torch.meshgrid(torch.arange(frames), torch.arange(rows), torch.arange(columns), indexing="ij")
    token = (f * (rows // 2) + y // 2) * (columns // 2) + x // 2 - first_token
    given = (token >= 0) & (token < len(velocity_SBP))
    place = ((y % 2) * 2 + x % 2) * channels
    losses = 0
    for channel in range(channels):
        predicted = velocity_SBP[token[given], :, (place + channel)[given]]
        target = (noise_BCFYX - x0_BCFYX)[:, channel, given].T
        losses = losses + ((predicted - target) ** 2).sum(0)
    return weight_B.to(velocity_SBP.dtype) * losses / (channels * frames * rows * columns)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [case for case in CASES if not case.large], ids=str)
def test_agrees_with_the_latents_side(agree, case, dtype):
    agree("flow_loss", case, dtype, oracle, ("velocity_SBP",))


def test_shards_of_the_sequence_add_up():
    arguments = inputs(CASES[0], dtype=torch.float64)
    velocity = arguments["velocity_SBP"].requires_grad_()
    whole = flow_loss(**arguments)
    parts = [
        flow_loss(**(arguments | {"velocity_SBP": velocity[start:stop], "first_token": start}))
        for start, stop in ((0, 1), (1, 50), (50, 120), (120, 120))
    ]
    torch.testing.assert_close(sum(parts), whole)
    gradients = [torch.autograd.grad(loss.sum(), velocity)[0] for loss in (sum(parts), whole)]
    torch.testing.assert_close(*gradients)


def test_only_velocity_gets_a_gradient():
    arguments = inputs(ODD.but("whole", first=0))
    for name in ("x0_BCFYX", "noise_BCFYX", "weight_B"):
        arguments[name].requires_grad_()
    assert not flow_loss(**arguments).requires_grad
    arguments["velocity_SBP"].requires_grad_()
    flow_loss(**arguments).sum().backward()
    assert arguments["velocity_SBP"].grad.any()
    assert all(arguments[name].grad is None for name in ("x0_BCFYX", "noise_BCFYX", "weight_B"))


def test_gradient_matches_finite_differences():
    arguments = inputs(ODD.but("some", S=4, first=3), dtype=torch.float64)
    velocity = arguments.pop("velocity_SBP").requires_grad_()
    assert torch.autograd.gradcheck(lambda each: flow_loss(each, **arguments), velocity)


def test_bf16_velocity_gives_an_fp32_loss():
    assert flow_loss(**inputs(CASES[0], dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("first", [-1, 12])
def test_tokens_outside_the_sample_are_refused(first):
    """A negative or late start would otherwise slice the wrong target, or none."""
    with pytest.raises(AssertionError, match="tokens"):
        flow_loss(**inputs(ODD.but("outside", S=4, first=first)))
