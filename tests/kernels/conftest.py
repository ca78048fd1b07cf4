"""How a kernel is judged: against its oracle in float64, relative to the error of plain low precision.

Without a GPU the Triton kernels run in Triton's interpreter, on the CPU: what it cannot show, the compiler's report
(`contentv bench compile`) and a run on hardware must.
"""

import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from contentv.kernels.registry import TABLE
from contentv.parallel.accelerator import present

INTERPRETED = not torch.cuda.is_available()
if INTERPRETED:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated: before the first kernel is imported
    if find_spec("triton") is not None:
        from tests.kernels import interpreter

        interpreter.repair()
IN_TRITON = ("gpu_triton", "npu_triton")
OURS = ("reference", "cpu_native", "gpu_cuda", *IN_TRITON)
OPCHECKS = "ALL" if present() != "npu" else ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
"""Of torch.library.opcheck: how gradients are registered it can only ask of a CPU or a GPU."""
INTERPRETED_VALUES = 2**16
"""The interpreter takes a second for what a GPU does in microseconds: larger cases are not given to it."""
INTERPRETED_ON_ASCEND = 2**12
"""Fewer for npu_triton: the odd sizes are among them, and test_npu_triton.py makes its loops go round."""

FLOOR = 4 * 2.0**-23
"""4 ULP of fp32 relative to the largest value: what a different order of summation may cost when the baseline is
exact by luck."""


def run(function: Callable, arguments: dict, differentiable: tuple[str, ...], dtype: torch.dtype | None) -> dict:
    """Outputs by position and gradients by argument name, all in float64, for fixed random cotangents."""

    def prepare(name, value):
        if isinstance(value, tuple):
            return tuple(prepare("", each) for each in value)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        value = value.detach() if dtype is None else value.detach().to(dtype)
        return value.requires_grad_() if name in differentiable else value

    arguments = {name: prepare(name, value) for name, value in arguments.items()}
    outputs = function(**arguments)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    results = {f"output {index}": output for index, output in enumerate(outputs)}
    if differentiable:
        generator = torch.Generator().manual_seed(1)
        cotangents = [torch.randn(output.shape, generator=generator).to(output) for output in outputs]
        gradients = torch.autograd.grad(outputs, [arguments[name] for name in differentiable], cotangents)
        results |= {f"gradient of {name}": each for name, each in zip(differentiable, gradients, strict=True)}
    return {name: _widened(each.detach()) for name, each in results.items()}


def _widened(result: Tensor) -> Tensor:
    return (result.cpu() if result.device.type == "npu" else result).double()


def moved(value, device: str):
    """Inputs on another device; as they are where they lie there."""
    if isinstance(value, dict):
        return {name: moved(each, device) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(moved(each, device) for each in value)
    return value.to(device) if isinstance(value, Tensor) else value


def distances(result: Tensor, truth: Tensor) -> tuple[float, float]:
    """Relative error in the L2 norm and in the largest value; a zero truth demands an exact zero."""
    error = result - truth
    if not error.any():
        return 0.0, 0.0
    return (error.norm() / truth.norm()).item(), (error.abs().max() / truth.abs().max()).item()


def refusal(op: str, name: str, dtype: torch.dtype | None = None) -> str | None:
    """Why a backend cannot be tested here, on tensors of this dtype; None if it can."""
    if INTERPRETED and name in IN_TRITON and present() == "cpu":
        return None
    return TABLE[op, name].refuses(present(), dtype)


@pytest.fixture
def device() -> str:
    """Where the inputs of a test lie."""
    return present()


@pytest.fixture
def backend():
    """backend(op, name, dtype): that implementation; the test is skipped where it cannot run, on such tensors."""

    def load(op: str, name: str, dtype: torch.dtype | None = torch.float32) -> Callable:
        if (op, name) not in TABLE:
            pytest.skip(f"{op} has no backend {name}")
        if reason := refusal(op, name, dtype):
            pytest.skip(reason)
        return TABLE[op, name].load()

    return load


@pytest.fixture
def poisoned():
    """Memory that a kernel is given to fill holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def is_interpretable(name: str, arguments: dict) -> bool:
    most = INTERPRETED_ON_ASCEND if name == "npu_triton" else INTERPRETED_VALUES
    return max(value.numel() for value in arguments.values() if isinstance(value, Tensor)) <= most


@pytest.fixture
def agree(poisoned):
    """agree(op, case, dtype, oracle, differentiable): every backend that this machine can run, forward and gradients.

    The oracle is plain differentiable torch in the dtype of its inputs. It runs in float64 for the truth and in
    `dtype` for the error that is allowed: err(backend) <= 2 err(oracle in dtype) + FLOOR.
    """

    def check(op: str, case, dtype: torch.dtype, oracle: Callable, differentiable: tuple[str, ...] = ()) -> None:
        device = present()
        # An NPU has no fp64: there the truth is the host's.
        host = "cpu" if device == "npu" else device
        inputs = import_module(f"contentv.kernels.{op}.cases").inputs(case, dtype=dtype, device=host)
        truth = run(oracle, inputs, differentiable, torch.float64)
        plain = run(oracle, inputs, differentiable, dtype)
        for (each, name), backend in TABLE.items():
            if each != op or refusal(op, name, dtype):
                continue
            if INTERPRETED and name in IN_TRITON and not is_interpretable(name, inputs):
                continue
            try:
                got = run(backend.load(), moved(inputs, device), differentiable, None)
            except ValueError:
                if name in OURS:
                    raise
                continue  # a vendor takes less than the contract, and said so
            assert got.keys() == truth.keys()
            for part, result in got.items():
                assert result.shape == truth[part].shape, f"{name}, {part}"
                allowed = distances(plain[part], truth[part])
                found = distances(result, truth[part])
                for norm, error, bound in zip(("L2", "largest"), found, allowed, strict=True):
                    assert error <= 2 * bound + FLOOR, f"{name}, {part}: {norm} error {error:.2e}, plain {bound:.2e}"

    return check
