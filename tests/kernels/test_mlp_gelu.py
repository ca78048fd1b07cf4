"""Bias and GELU against the tanh formula and diffusers' GELU."""

import math

import pytest
import torch

from contentv.kernels.case import ODD
from contentv.kernels.mlp_gelu.cases import CASES, inputs
from contentv.kernels.mlp_gelu.reference import mlp_gelu


def oracle(hidden_SBM, bias_M):
    h = hidden_SBM + bias_M
    # 1 + tanh(z) = 2 / (1 + exp(-2 z)), which loses nothing where tanh is near -1.
    return h * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (h + 0.044715 * h * h * h))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [case for case in CASES if not case.large], ids=str)
def test_agrees_with_the_formula(agree, case, dtype):
    agree("mlp_gelu", case, dtype, oracle, ("hidden_SBM", "bias_M"))


def test_agrees_with_diffusers():
    activations = pytest.importorskip("diffusers.models.activations")
    torch.manual_seed(0)
    layer = activations.GELU(ODD["D"], ODD["M"], approximate="tanh")
    tokens = torch.randn(5, 2, ODD["D"])
    with torch.no_grad():
        got = mlp_gelu(tokens @ layer.proj.weight.T, layer.proj.bias)
        torch.testing.assert_close(got, layer(tokens), rtol=1e-5, atol=1e-6)


def test_the_biased_sum_is_not_rounded():
    """256 + 1 is no bf16 value: rounding the sum before the activation would lose the bias."""
    hidden, bias = torch.tensor([[[-256.0]]], dtype=torch.bfloat16), torch.tensor([257.0])
    expected = oracle(torch.tensor(-256.0), torch.tensor(257.0)).bfloat16()
    assert mlp_gelu(hidden, bias).item() == expected.item() != 0


def test_any_strides():
    arguments = inputs(ODD)
    strided = arguments["hidden_SBM"].transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(mlp_gelu(strided, arguments["bias_M"]), mlp_gelu(**arguments))
