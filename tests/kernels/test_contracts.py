"""Every operation is the same small book (contract, reference, cases, tests), every backend has its contract's face."""

import inspect
from importlib import import_module
from pathlib import Path
from typing import get_type_hints

import pytest
import torch

from contentv.kernels.ranks import DEVICE_TYPES, OPERATIONS, RANKS
from contentv.kernels.registry import TABLE, KernelSet, choose
from contentv.parallel.accelerator import present

FOLDER = Path(inspect.getfile(KernelSet)).parent


def contract(op):
    """The Protocol that KernelSet promises for this operation."""
    return get_type_hints(KernelSet)[op]


def face(function, skip_self=False):
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())[skip_self:]
    return [(each.name, each.kind, each.default, each.annotation) for each in parameters], signature.return_annotation


def test_folders_table_ranks_and_set_name_the_same_operations():
    folders = {path.parent.name for path in FOLDER.glob("*/__init__.py")}
    fields = set(get_type_hints(KernelSet)) - {"device", "rows"}
    assert (
        folders
        == fields
        == set(OPERATIONS)
        == {op for op, _ in TABLE}
        == {op for ranks in RANKS.values() for op in ranks}
    )


@pytest.mark.parametrize("op", OPERATIONS)
def test_an_operation_is_a_small_book(op):
    package = import_module(f"contentv.kernels.{op}")
    assert contract(op).__module__ == package.__name__, "the contract stands in the operation's own package"
    assert package.__doc__ and "Source" in package.__doc__, "formula and source open the contract"
    assert contract(op).__call__.__doc__, "shapes and dtypes stand in the call's docstring"
    assert (op, "reference") in TABLE and TABLE[op, "reference"].devices == DEVICE_TYPES
    assert (FOLDER / op / "reference.py").is_file()
    tests = Path(__file__).with_name(f"test_{op}.py")
    assert tests.is_file() and "def test_" in tests.read_text(), f"{tests.name} judges the operation"


@pytest.mark.parametrize("op", OPERATIONS)
def test_cases_are_named_once_and_fit_the_contract(op):
    cases = import_module(f"contentv.kernels.{op}.cases")
    names = [case.name for case in cases.CASES]
    assert len(set(names)) == len(names)
    assert any(case.name.startswith("odd") for case in cases.CASES), "an odd size is always in"
    assert any(case.name.startswith("contentv") for case in cases.CASES), "the 8B model's shapes are in"
    arguments = cases.inputs(cases.CASES[0])
    inspect.signature(contract(op).__call__).bind(None, **arguments)
    again = cases.inputs(cases.CASES[0])
    for name, value in arguments.items():
        assert not isinstance(value, torch.Tensor) or torch.equal(value, again[name]), f"{name} is not reproducible"


@pytest.mark.parametrize("op", OPERATIONS)
def test_an_operation_says_what_it_must_move(op):
    """Bytes and operations forward; backward too, where the contract has gradients."""
    cases = import_module(f"contentv.kernels.{op}.cases")
    cost = cases.cost(cases.CASES[0], torch.float32)
    assert cost.forward_bytes > 0 and cost.forward_flops > 0
    is_differentiable = op not in ("matrix_product", "flow_noise", "gradient_norm", "adamw")
    assert (cost.backward_bytes > 0) == (cost.backward_flops > 0) == is_differentiable


@pytest.mark.parametrize(("op", "name"), TABLE)
def test_a_backend_has_the_contracts_face(op, name, backend):
    loaded = backend(op, name, None)
    assert face(loaded) == face(contract(op).__call__, skip_self=True)


@pytest.mark.parametrize("op", OPERATIONS)
def test_a_triton_backend_says_what_the_gate_compiles(op, backend):
    backend(op, "gpu_triton", None)
    assert hasattr(import_module(f"contentv.kernels.{op}.gpu_triton"), "COMPILED")


@pytest.mark.parametrize("name", [name for op, name in TABLE if op == "joint_attention"])
def test_attentions_backward_alone_has_the_contracts_face(name):
    backend = TABLE["joint_attention", name]
    if backend.refuses(present()):
        pytest.skip(backend.refuses(present()))
    expected = face(contract("joint_attention").backward, skip_self=True)
    assert face(backend.load().backward) == expected


@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("device", DEVICE_TYPES)
def test_every_backend_has_a_rank_on_its_devices(device, op):
    there = {name for (each, name), backend in TABLE.items() if each == op and device in backend.devices}
    assert set(RANKS[device][op]) == there and len(RANKS[device][op]) == len(there)


def test_low_precision_in_low_precision_out():
    """Tokens keep their dtype through every operation of a block."""
    for op in (op for op in OPERATIONS if op not in ("flow_loss", "gradient_norm", "adamw")):
        cases = import_module(f"contentv.kernels.{op}.cases")
        small = next(case for case in cases.CASES if case.name.startswith("odd"))
        for dtype in (torch.bfloat16, torch.float16, torch.float64):
            kernels = choose("cpu", dtype=dtype)
            outputs = getattr(kernels, op)(**cases.inputs(small, dtype=dtype))
            first = outputs[0] if isinstance(outputs, tuple) else outputs
            assert first.dtype == dtype, op


@pytest.mark.parametrize(
    # The norm after a residual sees it rounded, by its contract; noise is rounded before it is mixed.
    "op",
    [op for op in OPERATIONS if op not in ("gated_residual_norm", "flow_noise", "gradient_norm", "adamw")],
)
def test_references_compute_in_fp32_and_round_once(op):
    """On bf16 input a reference gives the bits of its fp32 result, rounded."""
    cases = import_module(f"contentv.kernels.{op}.cases")
    small = next(case for case in cases.CASES if case.name.startswith("odd"))
    low = cases.inputs(small, dtype=torch.bfloat16)
    exact = {name: each.float() if isinstance(each, torch.Tensor) else each for name, each in low.items()}
    reference = TABLE[op, "reference"].load()
    got, expected = reference(**low), reference(**exact)
    pairs = zip(got, expected, strict=True) if isinstance(got, tuple) else [(got, expected)]
    assert all(torch.equal(each, wanted.to(each.dtype)) for each, wanted in pairs)
