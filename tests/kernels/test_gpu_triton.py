"""What is special about the Triton kernels: their random words, any strides and sizes, memory all written, the same
bits twice, nothing compiled anew from step to step. Whether they compute the right thing is asked in test_<op>.py.
"""

from importlib import import_module

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from contentv.kernels import philox
from contentv.kernels.case import ODD, QUICKSTART
from contentv.kernels.ranks import OPERATIONS
from contentv.kernels.registry import TABLE

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402  after the line that skips where Triton is not

from contentv.kernels.triton_philox import normal, words  # noqa: E402
from tests.kernels.conftest import IN_TRITON  # noqa: E402

OPS = [op for op in OPERATIONS if op != "joint_attention"]
NOT_DIFFERENTIABLE = ("flow_noise", "gradient_norm", "adamw")
IN_PLACE = "adamw"


@pytest.fixture(params=IN_TRITON)
def load(request, backend):
    """load(op): its Triton implementation, for GPUs and for Ascend."""

    def load(op):
        return backend(op, request.param)

    load.name = request.param
    return load


def odd_inputs(op, device, dtype=torch.float32, **changed):
    cases = import_module(f"contentv.kernels.{op}.cases")
    case = next(each for each in cases.CASES if each.name.startswith("odd"))
    return cases.inputs(case.but("changed", **changed) if changed else case, dtype=dtype, device=device)


def flat(value):
    """The tensors in an argument or a result."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [each for part in value for each in flat(part)] if isinstance(value, list | tuple) else []


def results(function, arguments, spread=None):
    """Outputs and every gradient, detached; the cotangents are fixed random values, laid out in memory by `spread`."""
    leaves = {
        name: each.detach().requires_grad_()
        for name, each in arguments.items()
        if isinstance(each, torch.Tensor) and each.is_floating_point()
    }
    outputs = flat(function(**(arguments | leaves)))
    found = [output.detach() for output in outputs]
    if any(output.requires_grad for output in outputs):
        generator = torch.Generator().manual_seed(1)
        cotangents = [torch.randn(output.shape, generator=generator).to(output) for output in outputs]
        cotangents = [spread(each) for each in cotangents] if spread else cotangents
        gradients = torch.autograd.grad(outputs, list(leaves.values()), cotangents, allow_unused=True)
        found += [each for each in gradients if each is not None]
    return found


def assert_near(got, expected, ulps, dtype=torch.float32):
    """Within some ULP of a dtype, relative to the largest value: sums are made in another order."""
    for each, wanted in zip(got, expected, strict=True):
        assert each.dtype == wanted.dtype and each.shape == wanted.shape
        error, largest = (each.double() - wanted.double()).abs().max(), wanted.double().abs().max()
        assert error <= ulps * torch.finfo(dtype).eps * largest


# Random words and normals.


@triton.jit
def _draw(counters, seeds, drawn, made, count, STREAM: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = place < count
    element, sample = tl.load(counters + place, mask=there), tl.load(counters + count + place, mask=there)
    step = tl.load(counters + 2 * count + place, mask=there)
    word0, word1, word2, word3 = words(tl.load(seeds), tl.load(seeds + 1), element, sample, step, STREAM)
    tl.store(drawn + place, word0.to(tl.int64), mask=there)
    tl.store(drawn + count + place, word1.to(tl.int64), mask=there)
    tl.store(drawn + 2 * count + place, word2.to(tl.int64), mask=there)
    tl.store(drawn + 3 * count + place, word3.to(tl.int64), mask=there)
    tl.store(made + place, normal(word0, word1), mask=there)


@triton.jit
def _normals(given, made, count, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    word0 = tl.load(given + place, mask=place < count).to(tl.uint32)
    word1 = tl.load(given + count + place, mask=place < count).to(tl.uint32)
    tl.store(made + place, normal(word0, word1), mask=place < count)


def ulps(one, other):
    """Distance in units of the last place; +0 and -0 are neighbours of nothing else."""
    one, other = (each.cpu().view(torch.int32).long() for each in (one, other))
    one, other = (torch.where(each < 0, -(each & 0x7FFFFFFF), each) for each in (one, other))
    return (one - other).abs().max().item()


@pytest.mark.parametrize("seed", [0, 1, 0x1234_5678_9ABC_DEF0, 2**64 - 1])
def test_words_are_those_of_the_reference_and_normals_near(seed, device):
    generator = torch.Generator().manual_seed(seed % 2**32)
    count = 4099
    counters = torch.randint(0, 2**32, (3, count), generator=generator)
    counters[:, 0], counters[:, 1] = 0, 2**32 - 1
    expected = philox.words(seed, *counters, philox.Stream.NOISE)
    counters, seeds = counters.to(device), torch.tensor([seed & 0xFFFFFFFF, seed >> 32], device=device)
    drawn, made = counters.new_empty(4, count), torch.empty(count, device=device)
    _draw[triton.cdiv(count, 1024),](counters, seeds, drawn, made, count, int(philox.Stream.NOISE), 1024)
    assert torch.equal(drawn.cpu(), torch.stack(expected))
    assert ulps(made, philox.normal(expected[0], expected[1])) <= 4


def test_normals_are_near_where_logarithm_and_cosine_are_difficult(device):
    """u1 next to 1 and to 0; angles around the cosine's zeros, where a small error is many ULP."""
    ends = [0, 255, 256, 2**31, 2**32 - 512, 2**32 - 256, 2**32 - 1]
    quarters = [(quarter << 30) + (off << 8) for quarter in range(4) for off in range(-40, 41)]
    given = torch.cartesian_prod(torch.tensor(ends), torch.tensor(quarters) % 2**32).T.contiguous()
    made = torch.empty(given.shape[1], device=device)
    _normals[triton.cdiv(len(made), 1024),](given.to(device), made, len(made), 1024)
    assert ulps(made, philox.normal(*given)) <= 4


def test_noise_is_that_of_the_other_backends(load, device):
    arguments = odd_inputs("flow_noise", device) | {"step": 2**32 - 1, "seed": 2**64 - 1}
    made = load("flow_noise")(**arguments)[1]
    others = [each for (op, name), each in TABLE.items() if op == "flow_noise" and name not in IN_TRITON]
    for other in others:
        if other.refuses(device) is None:
            assert ulps(made, other.load()(**arguments)[1]) <= 4, other.name


# Strides, sizes, dtypes.


def turned(tensor):
    """The same values with the axes in memory the other way round."""
    return tensor.permute(*reversed(range(tensor.ndim))).contiguous().permute(*reversed(range(tensor.ndim)))


def sliced(tensor):
    """The same values with gaps between them, beginning nowhere round."""
    wide = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 3), float("nan"))
    view = wide[..., 3 : 3 + 2 * tensor.shape[-1] : 2]
    return view.copy_(tensor)


@pytest.mark.parametrize("spread", [turned, sliced])
@pytest.mark.parametrize("op", [op for op in OPS if op != IN_PLACE])
def test_any_strides(load, op, spread, device):
    arguments = odd_inputs(op, device)
    expected = results(load(op), arguments)

    def move(value):
        if isinstance(value, list | tuple):
            return type(value)(move(each) for each in value)
        movable = isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim
        return spread(value) if movable else value

    moved = {name: move(value) for name, value in arguments.items()}
    got = results(load(op), moved, None if op == "flow_loss" else spread)
    assert_near(got, expected, ulps=16)


@pytest.mark.parametrize("op", [op for op in OPS if op not in NOT_DIFFERENTIABLE])
def test_a_gradient_of_one_value_for_all(load, op, device):
    """sum().backward() hands over a gradient whose every stride is 0."""
    arguments = odd_inputs(op, device)

    def gradients(function):
        leaves = {
            name: each.detach().requires_grad_()
            for name, each in arguments.items()
            if isinstance(each, torch.Tensor) and each.is_floating_point()
        }
        sum(each.sum() for each in flat(function(**(arguments | leaves)))).backward()
        return [leaf.grad for leaf in leaves.values() if leaf.grad is not None]

    assert_near(gradients(load(op)), gradients(TABLE[op, "reference"].load()), ulps=64)


SIZES = [
    {"S": 1, "B": 1, "D": 3, "M": 1, "H": 1, "E": 2, "R": 1},
    {"S": 1, "B": 2, "D": 5, "M": 3, "H": 3, "E": 6, "R": 3},
    {"S": 33, "B": 1, "D": 130, "M": 600, "H": 2, "E": 64, "R": 32},
    {"S": 5, "B": 2, "D": 1025, "M": 513, "H": 1, "E": 128, "R": 64},
    {"S": 0, "B": 2, "D": 6, "M": 6, "H": 2, "E": 4, "R": 2},
]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "S {S} B {B} D {D}".format(**size))
@pytest.mark.parametrize("op", [op for op in OPS if op not in (IN_PLACE, "gradient_norm", "flow_noise", "flow_loss")])
def test_sizes(load, op, size, device, poisoned):
    arguments = odd_inputs(op, device, **size)
    expected = results(TABLE[op, "reference"].load(), arguments)
    if not size["S"]:
        got = results(load(op), arguments)
        assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True))
    else:
        assert_near(results(load(op), arguments), expected, ulps=64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("op", [op for op in OPS if op not in (IN_PLACE, "gradient_norm")])
def test_low_precision_tokens_with_fp32_rows(load, op, dtype, device):
    """Tokens keep their dtype; rows of modulation, gains and biases have their own, and so have their gradients."""
    rows = ("gate_BD", "shift_BD", "scale_BD", "bias_M", "q_gain_E", "k_gain_E")
    arguments = odd_inputs(op, device, dtype)
    arguments |= {name: arguments[name].float() for name in rows if name in arguments}
    expected = results(TABLE[op, "reference"].load(), arguments)
    assert_near(results(load(op), arguments), expected, 2, dtype)


def test_a_width_no_program_can_hold_is_refused(load, device):
    arguments = odd_inputs("modulated_norm", device, S=1, B=1, D=16385)
    with pytest.raises(ValueError, match="16385 values.*up to 16384"):
        load("modulated_norm")(**arguments)


# Memory, determinism, the dispatcher, the compiler.


@pytest.mark.parametrize("op", OPS)
def test_all_is_written_and_twice_the_same(load, op, device, poisoned):
    def once():
        arguments = odd_inputs(op, device)
        found = results(load(op), arguments)
        return flat(list(arguments.values())) if op == IN_PLACE else found

    first, second = once(), once()
    assert all(each.isfinite().all() for each in first)
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


class _Recorder(TorchDispatchMode):
    """Keeps the calls of our operators with their arguments."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operator, types, arguments=(), named=None):
        if operator.namespace == "contentv":
            self.calls.append((operator, arguments))
        return operator(*arguments, **(named or {}))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("load", ["gpu_triton"], indirect=True)
def test_the_dispatcher_is_told_the_truth(load, op, device):
    """torch.library.opcheck of forward and backward: schema, aliasing, shapes without data, autograd. What it judges is
    operator.py's, whichever kernels fill."""
    with _Recorder() as recorder:
        results(load(op), odd_inputs(op, device))
    names = [operator.name() for operator, _ in recorder.calls]
    assert names[0] == f"contentv::{op}_{load.name}" and len(names) == 1 + (op not in NOT_DIFFERENTIABLE)
    for (operator, arguments), is_forward in zip(recorder.calls, (True, False), strict=False):
        differentiable = is_forward and op not in NOT_DIFFERENTIABLE

        def fresh(value, differentiable=differentiable):
            if isinstance(value, list):
                return [fresh(each) for each in value]
            if not isinstance(value, torch.Tensor):
                return value
            return value.detach().clone().requires_grad_(differentiable and value.is_floating_point())

        torch.library.opcheck(operator, tuple(fresh(each) for each in arguments))


def test_nothing_is_compiled_anew_from_step_to_step(load, device):
    if device != "cuda":
        pytest.skip("the interpreter compiles nothing")
    from contentv.kernels.adamw.gpu_triton import _update
    from contentv.kernels.flow_noise.gpu_triton import _forward

    def compiled():
        return [len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in (_update, _forward)]

    def step(number):
        arguments = odd_inputs("adamw", device)
        update = arguments["update"]
        numbers = {name: getattr(update, name) for name in update.__dataclass_fields__}
        arguments["update"] = type(update)(**(numbers | {"step": number, "lr": 1.0 / number}))
        load("adamw")(**arguments)
        load("flow_noise")(**(odd_inputs("flow_noise", device) | {"step": number, "seed": number << 20}))

    step(16)
    once = compiled()
    for number in (1, 2, 17, 2**31, 2**32 - 1):
        step(number)
    assert compiled() == once


def test_a_length_compiles_nothing_anew(load, device):
    if device != "cuda":
        pytest.skip("the interpreter compiles nothing")
    from contentv.kernels.modulated_norm.gpu_triton import _backward, _forward

    def compiled():
        return [len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in (_forward, _backward)]

    results(load("modulated_norm"), odd_inputs("modulated_norm", device, S=48, D=64))
    once = compiled()
    for length in (1, 2, 31, 160):
        results(load("modulated_norm"), odd_inputs("modulated_norm", device, S=length, D=64))
    assert compiled() == once


@pytest.mark.parametrize("offset", [0, 1])
def test_tensors_of_several_pieces(load, offset, device):
    """Above 65,536 values a tensor is cut; one that begins between 16-byte boundaries takes another path."""

    def once(name):
        generator = torch.Generator().manual_seed(0)
        states = [torch.randn(66_000 + offset, generator=generator).to(device)[offset:] for _ in range(5)]
        states[3].square_()
        copies = [torch.zeros(66_000, dtype=torch.bfloat16, device=device)]
        arguments = [[state] for state in states]
        update = odd_inputs("adamw", device)["update"]
        TABLE["adamw", name].load()(*arguments, copies, update)
        assert torch.equal(copies[0], states[0].bfloat16())
        return states, TABLE["gradient_norm", name].load()(states)

    load("adamw")
    (got, squared), (expected, expected_squared) = once(load.name), once("reference")
    assert_near(got, expected, ulps=2)
    assert_near([squared], [expected_squared], ulps=8)


def test_sums_over_several_programs_and_rounds(load, device):
    """Several programs for a sample and several rounds for each program: the odd case is too small for that."""
    arguments = odd_inputs("gated_residual_norm", device, S=QUICKSTART["S"], B=1, D=ODD["D"])
    expected = results(TABLE["gated_residual_norm", "reference"].load(), arguments)
    assert_near(results(load("gated_residual_norm"), arguments), expected, ulps=64)
