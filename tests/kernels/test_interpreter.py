"""The interpreter is repaired where Triton's own is wrong, and only as long as it is."""

import os

import pytest
import torch

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("a GPU is there: nothing is interpreted", allow_module_level=True)

import triton.language as tl  # noqa: E402 - after the skip: without the interpreter there is nothing to import
from triton.runtime.interpreter import InterpreterBuilder  # noqa: E402

from tests.kernels import interpreter  # noqa: E402


@triton.jit
def _product(a, b, result, SIZE: tl.constexpr):
    rows = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(result + rows, tl.dot(tl.load(a + rows), tl.load(b + rows)))


@triton.jit
def _narrow(values, result, SIZE: tl.constexpr):
    rows = tl.arange(0, SIZE)
    tl.store(result + rows, tl.load(values + rows).to(tl.bfloat16))


def product():
    a, b = (torch.randn(16, 16, generator=torch.Generator().manual_seed(seed)).bfloat16() for seed in (0, 1))
    result = torch.empty(16, 16)
    _product[(1,)](a, b, result, SIZE=16)
    return result, a.float() @ b.float()


def narrowed():
    values = torch.randn(1024, generator=torch.Generator().manual_seed(0)) * 3
    # A tie to even, a tie to odd, a carry into the exponent, infinity, both zeros.
    values[:6] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 2 - 2**-10, float("inf"), 0.0, -0.0])
    values[6] = float("nan")
    result = torch.empty(1024, dtype=torch.bfloat16)
    _narrow[(1,)](values, result, SIZE=1024)
    return result, values.bfloat16()


def test_products_of_bfloat16_are_right():
    torch.testing.assert_close(*product(), rtol=1e-5, atol=1e-5)


def test_bfloat16_is_rounded_as_hardware_does():
    torch.testing.assert_close(*narrowed(), rtol=0, atol=0, equal_nan=True)


def test_the_repair_of_products_is_still_needed(monkeypatch):
    monkeypatch.setattr(InterpreterBuilder, "create_dot", interpreter.untouched_dot)
    result, truth = product()
    assert not torch.allclose(result, truth, rtol=0.1), "Triton multiplies bfloat16 itself now: drop the repair"


def test_the_repair_of_rounding_is_still_needed(monkeypatch):
    monkeypatch.setattr(InterpreterBuilder, "cast_impl", interpreter.untouched_cast)
    result, truth = narrowed()
    assert not torch.equal(result[:6], truth[:6]), "Triton rounds to bfloat16 itself now: drop the repair"
