"""csrc/cpu beyond what every backend is held to: threads, instruction sets, float64, strides, errors.

That its results agree with the oracles, in the instruction set this processor chooses, stands in each operation's test.
"""

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import pytest
import torch

from contentv.kernels import philox
from contentv.kernels.ranks import OPERATIONS
from contentv.kernels.registry import TABLE
from contentv.kernels.toolchains import native_refusal
from tests.kernels.conftest import FLOOR, distances, run

if native_refusal():
    pytest.skip(native_refusal(), allow_module_level=True)

from contentv.kernels.native import INSTRUCTION_SETS, instructions

DIFFERENTIABLE = {
    "matrix_product": (),
    "joint_attention": ("q_BHQE", "k_BHJE", "v_BHJE"),
    "qk_norm_rope": ("q_SBHE", "k_SBHE", "q_gain_E", "k_gain_E"),
    "modulated_norm": ("x_SBD", "shift_BD", "scale_BD"),
    "gated_residual": ("x_SBD", "gate_BD", "update_SBD"),
    "gated_residual_norm": ("x_SBD", "gate_BD", "update_SBD", "shift_BD", "scale_BD"),
    "mlp_gelu": ("hidden_SBM", "bias_M"),
    "flow_noise": (),
    "flow_loss": ("velocity_SBP",),
}
TENSOR_OPERATIONS = tuple(DIFFERENTIABLE)
ROOT = Path(__file__).resolve().parents[2]
SANITIZERS = ("libasan.so", "libubsan.so")


@contextmanager
def threads(count: int):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request):
    best = instructions()
    try:
        instructions(request.param)
    except ValueError as refusal:
        pytest.skip(str(refusal).splitlines()[0])
    yield request.param
    instructions(best)


def inputs(op: str, start: str, dtype: torch.dtype = torch.float32) -> dict:
    """A case's inputs: the first case whose name starts so."""
    cases = import_module(f"contentv.kernels.{op}.cases")
    return cases.inputs(next(case for case in cases.CASES if case.name.startswith(start)), dtype=dtype)


def native(op: str):
    return TABLE[op, "cpu_native"].load()


def attention(queries: int, keys: int, *, heads: int = 1, width: int = 18, dtype: torch.dtype = torch.float32) -> dict:
    generator = torch.Generator().manual_seed(queries)
    shapes = ((queries, 2, heads, width), (keys, 2, heads, width), (keys, 2, heads, width))
    q, k, v = (torch.randn(shape, generator=generator).to(dtype).permute(1, 2, 0, 3) for shape in shapes)
    return {"q_BHQE": q, "k_BHJE": k, "v_BHJE": v, "scale": width**-0.5}


def same_bits(first: dict, second: dict) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


# --- Threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", TENSOR_OPERATIONS)
def test_any_number_of_threads_gives_the_same_bits(op, dtype):
    everything = []
    for count in (1, 2, 3):
        with threads(count):
            everything.append(run(native(op), inputs(op, "quickstart", dtype), DIFFERENTIABLE[op], None))
    assert same_bits(everything[0], everything[1]) and same_bits(everything[0], everything[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threads_that_share_a_head_add_in_one_order(dtype):
    """1600 keys are three parts of one head; each adds to the same queries' gradients."""
    arguments = attention(101, 1600, dtype=dtype)
    everything = []
    for count in (1, 2, 3):
        with threads(count):
            everything.append(run(native("joint_attention"), arguments, DIFFERENTIABLE["joint_attention"], None))
    assert same_bits(everything[0], everything[1]) and same_bits(everything[0], everything[2])


def test_any_number_of_threads_updates_alike():
    norms, states = [], []
    for count in (1, 2):
        with threads(count):
            arguments = inputs("adamw", "quickstart")
            norms.append(native("gradient_norm")(arguments["gradients"]))
            native("adamw")(**arguments)
            states.append(
                [each for name in ("masters", "moments1", "moments2", "emas", "copies") for each in arguments[name]]
            )
    assert torch.equal(*norms) and all(torch.equal(*pair) for pair in zip(*states, strict=True))


# --- Instruction sets -------------------------------------------------------------------------------------------------


def agrees_with_the_reference(op: str, arguments: dict, dtype: torch.dtype) -> None:
    reference = TABLE[op, "reference"].load()
    truth = run(reference, arguments, DIFFERENTIABLE[op], torch.float64)
    plain = run(reference, arguments, DIFFERENTIABLE[op], None)
    got = run(native(op), arguments, DIFFERENTIABLE[op], None)
    for part, result in got.items():
        allowed = distances(plain[part], truth[part])
        for error, bound in zip(distances(result, truth[part]), allowed, strict=True):
            assert error <= 2 * bound + FLOOR, f"{op}, {part}: error {error:.2e}, reference {bound:.2e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("op", [op for op in TENSOR_OPERATIONS if op != "flow_noise"])
def test_every_instruction_set_agrees(op, dtype, instruction_set, poisoned):
    for start in ("odd", "quickstart") if dtype in (torch.float32, torch.bfloat16) else ("odd",):
        agrees_with_the_reference(op, inputs(op, start, dtype), dtype)


@pytest.mark.parametrize("width", [2, 7, 33, 64, 128])
def test_attention_of_any_head_width(width, instruction_set, poisoned):
    agrees_with_the_reference("joint_attention", attention(53, 600, heads=2, width=width), torch.float32)


@pytest.mark.parametrize("queries, keys", [(1, 1), (1, 97), (49, 1), (480, 96), (481, 1025)])
def test_attention_at_the_edges_of_its_blocks(queries, keys, poisoned):
    agrees_with_the_reference("joint_attention", attention(queries, keys), torch.float32)


def test_attention_without_queries_is_nothing():
    """Not in the contract, which begins at one; and no reason to end the process."""
    given = attention(0, 5)
    leaves = {name: given[name].requires_grad_() for name in ("q_BHQE", "k_BHJE", "v_BHJE")}
    out_BHQE, lse_BHQ = native("joint_attention")(**(given | leaves))
    assert (out_BHQE.numel(), lse_BHQ.numel()) == (0, 0)
    (out_BHQE.sum() + lse_BHQ.sum()).backward()
    assert not leaves["k_BHJE"].grad.any() and not leaves["v_BHJE"].grad.any()


def test_noise_is_within_4_ulp_of_philox(instruction_set):
    arguments = inputs("flow_noise", "quickstart")
    arguments["sample_B"] = torch.tensor([0, 1, 2**32 - 1, 2**32 + 5, 7, 8, -1, 10])
    x0 = arguments["x0_BCFYX"]
    x_t, noise = native("flow_noise")(**arguments)
    element = torch.arange(x0[0].numel()).view(x0.shape[1:])
    sample = arguments["sample_B"].view(-1, 1, 1, 1, 1)
    words = philox.words(arguments["seed"], element, sample, arguments["step"], philox.Stream.NOISE)[:2]
    expected = philox.normal(*words)
    ulp = torch.nextafter(expected.abs(), torch.tensor(torch.inf)) - expected.abs()
    assert ((noise - expected).abs() <= 4 * ulp).all()
    sigma = arguments["sigma_B"].view(-1, 1, 1, 1, 1)
    assert torch.equal(x_t, (1 - sigma) * x0 + sigma * noise)


def test_rounding_is_torchs(instruction_set):
    """To bf16 and fp16 and back: subnormal values, ties, overflow, infinity and NaN among them."""
    bits = torch.cat(
        [torch.arange(-(2**31), 2**31, 7919), torch.tensor([0x7F800000, 0x7FC00000, 0x477FEFFF, 0x477FF000])]
    )
    values = bits.to(torch.int32).view(torch.float32)
    for dtype in (torch.bfloat16, torch.float16):
        low = values.to(dtype)[None, None]
        gate, nothing = torch.ones(1, len(values)), torch.zeros_like(low)
        rounded = native("gated_residual")(low, gate, nothing)
        assert torch.equal(torch.nan_to_num(rounded, nan=7.0), torch.nan_to_num(low, nan=7.0)), "what was read is kept"
        copies = [torch.empty(len(values), dtype=dtype)]
        update = inputs("adamw", "odd")["update"]
        masters, zeros = [values.clone()], [torch.zeros(len(values))]
        native("adamw")(masters, zeros, [zeros[0].clone()], [zeros[0].clone()], None, copies, update)
        assert torch.equal(torch.nan_to_num(copies[0], nan=7.0), torch.nan_to_num(masters[0].to(dtype), nan=7.0))


# --- float64, strides -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [op for op in TENSOR_OPERATIONS if DIFFERENTIABLE[op]])
def test_float64_gradients(op):
    arguments = attention(3, 4, width=3) if op == "joint_attention" else inputs(op, "single", torch.float64)
    names = DIFFERENTIABLE[op]
    tensors = [arguments[name].detach().double().requires_grad_() for name in names]

    def function(*each):
        return native(op)(**(arguments | dict(zip(names, each, strict=True))))

    assert torch.autograd.gradcheck(function, tensors, check_undefined_grad=False)


def scattered(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, every second one of a larger buffer, axes in the opposite order."""
    buffer = torch.full([2 * size for size in tensor.shape[::-1]], torch.nan, dtype=tensor.dtype)
    view = buffer.permute(*reversed(range(tensor.dim())))[tuple(slice(1, None, 2) for _ in tensor.shape)]
    return view.copy_(tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", TENSOR_OPERATIONS)
def test_strides_change_no_bit(op, dtype):
    arguments = inputs(op, "odd", dtype)
    strided = {
        name: scattered(each) if isinstance(each, torch.Tensor) and each.is_floating_point() else each
        for name, each in arguments.items()
    }
    first, second = (run(native(op), each, DIFFERENTIABLE[op], None) for each in (arguments, strided))
    assert same_bits(first, second)


def test_the_norm_of_strided_gradients():
    values = torch.randn(5, 33, 7, 2, generator=torch.Generator().manual_seed(0))
    expected = values.double().square().sum()
    views = (
        values,
        values.permute(2, 0, 3, 1),
        scattered(values),
        values.transpose(0, 1)[::1].expand(33, 5, 7, 2),
        values.double(),
        values[:, :, :, None],
    )
    for view in views:
        torch.testing.assert_close(native("gradient_norm")([view]).double(), expected, rtol=1e-6, atol=0)
    repeated = values[0].expand(3, 33, 7, 2)
    expected = repeated.double().square().sum()
    torch.testing.assert_close(native("gradient_norm")([repeated]).double(), expected, rtol=1e-6, atol=0)


def test_the_norms_error_does_not_grow_with_the_count():
    gradient = torch.full((5_000_011,), 0.1)
    got = native("gradient_norm")([gradient, torch.zeros(0), torch.tensor(1.0).bfloat16()])
    assert got.item() == pytest.approx(5_000_011 * gradient[0].double().item() ** 2 + 1, rel=2.0**-23)


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_bad_gradients_show(bad):
    assert not native("gradient_norm")([torch.ones(5), torch.tensor([1.0, bad])]).isfinite()


# --- As operators -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPERATIONS)
def test_opcheck(op):
    native(op)
    operator = getattr(torch.ops.contentv, f"{op}_cpu_native").default
    arguments = inputs(op, "odd")
    for name in DIFFERENTIABLE.get(op, ()):
        arguments[name] = arguments[name].detach().requires_grad_()
    if op == "qk_norm_rope":
        rotation = arguments.pop("rotation")
        flat = [*list(arguments.values())[:4], *rotation, arguments["epsilon"]]
    elif op == "flow_noise":
        seed = arguments.pop("seed")
        flat = [*arguments.values(), seed & 0xFFFFFFFF, seed >> 32]
    elif op == "adamw":
        update = arguments.pop("update")
        numbers = (update.lr, update.beta1, update.beta2, update.epsilon, update.weight_decay, update.step)
        flat = [*arguments.values(), update.clip_factor, *numbers, update.ema_decay]
    else:
        flat = list(arguments.values())
    torch.library.opcheck(operator, flat)


# --- Errors -----------------------------------------------------------------------------------------------------------


def test_a_dtype_it_does_not_take_is_refused():
    with pytest.raises(ValueError, match="dtype.*takes float32, bfloat16"):
        native("gated_residual")(*(torch.zeros(2, 1, 3, dtype=torch.int32) for _ in range(3)))


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(ValueError, match="sse9.*baseline"):
        instructions("sse9")


# --- Memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_sanitizers_find_nothing(tmp_path):
    """These tests again, on a copy of the checkout whose library is built with ASan and UBSan."""
    if shutil.which("g++") is None:
        pytest.skip("there is no g++ to build with")
    skipped = shutil.ignore_patterns("*.so", "__pycache__", ".*", "build", "runs", "data", "wheelhouse")
    copy = shutil.copytree(ROOT, tmp_path / "checkout", ignore=skipped)
    flags = "-O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all"
    building = {**os.environ, "CXX": "g++", "CXXFLAGS": flags}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=copy, env=building, check=True, timeout=600)
    # The interpreter is not built with ASan, so its runtime comes first; Python keeps memory until it ends.
    runtimes = [subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip() for name in SANITIZERS]
    running = {**os.environ, "LD_PRELOAD": " ".join(runtimes), "ASAN_OPTIONS": "detect_leaks=0"}
    running.pop("PYTHONPATH", None)
    tests = ["tests/kernels/test_cpu_native.py", "tests/kernels/test_matrix_product.py"]
    tests += ["-k", "not sanitizers and not opcheck"]
    command = [sys.executable, "-m", "pytest", "-x", *tests]
    child = subprocess.run(command, cwd=copy, env=running, capture_output=True, text=True)
    assert child.returncode == 0 and " passed" in child.stdout, child.stdout[-4000:] + child.stderr[-4000:]
