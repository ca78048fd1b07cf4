"""Gated residual against its formula, sample by sample."""

import pytest
import torch

from contentv.kernels.case import ODD
from contentv.kernels.gated_residual.cases import CASES, inputs
from contentv.kernels.gated_residual.reference import gated_residual


def oracle(x_SBD, gate_BD, update_SBD):
    samples = [x_SBD[:, sample] + update_SBD[:, sample] @ torch.diag(gate) for sample, gate in enumerate(gate_BD)]
    return torch.stack(samples, dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [case for case in CASES if not case.large], ids=str)
def test_agrees_with_a_diagonal_product(agree, case, dtype):
    agree("gated_residual", case, dtype, oracle, ("x_SBD", "gate_BD", "update_SBD"))


def test_a_zero_gate_is_the_identity():
    x_SBD = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(gated_residual(x_SBD, torch.zeros(2, 5), torch.full_like(x_SBD, 7.0)), x_SBD)


def test_bf16_tokens_take_an_fp32_gate_and_round_once():
    arguments = inputs(ODD, dtype=torch.bfloat16)
    gate_BD = inputs(ODD)["gate_BD"]
    got = gated_residual(arguments["x_SBD"], gate_BD, arguments["update_SBD"])
    expected = arguments["x_SBD"].double() + gate_BD.double() * arguments["update_SBD"].double()
    assert got.dtype == torch.bfloat16
    # Half an ULP of bf16 (2^-8 of the value) for the one rounding, and fp32's own error where the sum cancels.
    torch.testing.assert_close(got.double(), expected, rtol=1.01 * 2**-8, atol=1e-6)
