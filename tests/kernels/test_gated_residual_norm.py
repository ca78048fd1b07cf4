"""Gated residual with the norm that follows: against explicit moments, and against the two operations apart."""

import pytest
import torch

from contentv.kernels.case import ODD
from contentv.kernels.gated_residual.reference import gated_residual
from contentv.kernels.gated_residual_norm.cases import CASES, inputs
from contentv.kernels.gated_residual_norm.reference import gated_residual_norm
from contentv.kernels.modulated_norm.reference import modulated_norm


def oracle(x_SBD, gate_BD, update_SBD, shift_BD, scale_BD, *, epsilon):
    out = x_SBD + gate_BD[None] * update_SBD
    width = out.shape[-1]
    centred = out - out.sum(-1, keepdim=True) / width
    variance = (centred * centred).sum(-1, keepdim=True) / width
    return out, centred / (variance + epsilon).sqrt() * (1 + scale_BD)[None] + shift_BD[None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [case for case in CASES if not case.large], ids=str)
def test_agrees_with_explicit_moments(agree, case, dtype):
    differentiable = ("x_SBD", "gate_BD", "update_SBD", "shift_BD", "scale_BD")
    agree("gated_residual_norm", case, dtype, oracle, differentiable)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_is_the_two_operations_bit_for_bit(dtype):
    arguments = inputs(ODD, dtype=dtype)
    out, normed = gated_residual_norm(**arguments)
    x, gate, update, shift, scale, epsilon = arguments.values()
    assert torch.equal(out, gated_residual(x, gate, update))
    assert torch.equal(normed, modulated_norm(out, shift, scale, epsilon=epsilon))


def test_gradients():
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 2, 5), (2, 5), (3, 2, 5), (2, 5), (2, 5))
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    assert torch.autograd.gradcheck(lambda *each: gated_residual_norm(*each, epsilon=1e-3), tensors)
