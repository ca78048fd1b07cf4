"""Squared gradient norm against numpy in float64."""

import numpy as np
import pytest
import torch

from contentv.kernels.gradient_norm.cases import CASES, inputs
from contentv.kernels.gradient_norm.reference import gradient_norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [case for case in CASES if not case.large], ids=str)
def test_agrees_with_numpy(case, dtype):
    gradients = inputs(case, dtype=dtype)["gradients"]
    kept = [each.clone() for each in gradients]
    got = gradient_norm(gradients)
    expected = sum(np.square(each.double().numpy()).sum() for each in gradients)
    assert (got.dtype, got.shape) == (torch.float32, ())
    assert got.item() == pytest.approx(expected, rel=8 * 2.0**-24)
    assert all(torch.equal(*pair) for pair in zip(gradients, kept, strict=True))


def test_the_error_does_not_grow_with_the_count():
    """Added one by one, 5 million equal squares in fp32 would be wrong in the second digit."""
    gradient = torch.full((5_000_011,), 0.1)
    assert gradient_norm([gradient]).item() == pytest.approx(5_000_011 * gradient[0].double().item() ** 2, rel=1e-6)


def test_small_bf16_gradients_do_not_vanish():
    """1e-15 squared is below fp16's range and its sum below bf16's resolution; in fp32 it counts."""
    gradient = torch.full((300, 7), 1e-15).bfloat16()
    expected = 2100 * gradient[0, 0].double().item() ** 2
    assert gradient_norm([gradient]).item() == pytest.approx(expected, rel=1e-6)


def test_mixed_dtypes_and_empty_tensors_add_up():
    gradients = [torch.full((3,), 2.0), torch.full((2, 2), 3.0).bfloat16(), torch.zeros(0), torch.tensor(1.0).double()]
    assert gradient_norm(gradients).item() == 12 + 36 + 1


def test_no_gradients_is_zero():
    none = gradient_norm([])
    assert (none.item(), none.dtype, none.shape) == (0.0, torch.float32, ())


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_bad_values_show(bad):
    assert not gradient_norm([torch.ones(5), torch.tensor([1.0, bad])]).isfinite()
