"""Modulated LayerNorm against its formula written with explicit moments, and against diffusers' AdaLayerNorm."""

import pytest
import torch

from contentv.kernels.case import ODD
from contentv.kernels.modulated_norm.cases import CASES, inputs
from contentv.kernels.modulated_norm.reference import modulated_norm


def oracle(x_SBD, shift_BD, scale_BD, *, epsilon):
    width = x_SBD.shape[-1]
    centred = x_SBD - x_SBD.sum(-1, keepdim=True) / width
    variance = (centred * centred).sum(-1, keepdim=True) / width
    return centred / (variance + epsilon).sqrt() * (1 + scale_BD)[None] + shift_BD[None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [case for case in CASES if not case.large], ids=str)
def test_agrees_with_explicit_moments(agree, case, dtype):
    agree("modulated_norm", case, dtype, oracle, ("x_SBD", "shift_BD", "scale_BD"))


def test_agrees_with_diffusers():
    normalization = pytest.importorskip("diffusers.models.normalization")
    torch.manual_seed(0)
    width = ODD["D"]
    arguments = inputs(ODD)
    conditioning_BD = torch.randn(ODD["B"], width)
    norm = normalization.AdaLayerNormZero(width)
    with torch.no_grad():
        expected_BSD, *_ = norm(arguments["x_SBD"].transpose(0, 1), emb=conditioning_BD)
        shift_BD, scale_BD = norm.linear(norm.silu(conditioning_BD)).chunk(6, dim=1)[:2]
        got_SBD = modulated_norm(arguments["x_SBD"], shift_BD, scale_BD, epsilon=1e-6)
    torch.testing.assert_close(got_SBD.transpose(0, 1), expected_BSD, rtol=1e-5, atol=1e-5)


def test_gradients():
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((3, 2, 5), (2, 5), (2, 5))
    ]
    assert torch.autograd.gradcheck(lambda *each: modulated_norm(*each, epsilon=1e-3), tensors)


def test_bf16_tokens_take_fp32_modulation():
    arguments = inputs(ODD)
    mixed = modulated_norm(**(arguments | {"x_SBD": arguments["x_SBD"].bfloat16()}))
    truth = oracle(**(arguments | {"x_SBD": arguments["x_SBD"].bfloat16().float()}))
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), truth, rtol=2**-8, atol=2**-8)
