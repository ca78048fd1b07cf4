"""csrc/cuda: on the device where there is one, and the very same kernels compiled for the host everywhere.

cuda_on_cpu/ says what the host can show.
"""

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from contentv.kernels.adamw import gpu_cuda as adamw_cuda
from contentv.kernels.adamw.cases import inputs
from contentv.kernels.adamw.reference import adamw as adamw_reference
from contentv.kernels.case import ODD
from contentv.kernels.cuda_library import CudaLibrary
from contentv.kernels.gradient_norm import gpu_cuda as gradient_norm_cuda
from contentv.kernels.toolchains import cuda_refusal

SOURCES = Path(__file__).resolve().parents[2] / "csrc" / "cuda"
HEADERS = Path(__file__).with_name("cuda_on_cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
STATE = ("masters", "moments1", "moments2", "emas")
NORM_CHUNK, ADAMW_CHUNK = 16384, 8192


class HostLibrary(CudaLibrary):
    def launch(self, name, device, *arguments):
        self.call(name, *arguments, None)


@pytest.fixture(scope="module")
def host_library(tmp_path_factory):
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++")
    path = tmp_path_factory.mktemp("cuda") / "on_cpu.so"
    sources = [part for source in sorted(SOURCES.glob("*.cu")) for part in ("-x", "c++", str(source))]
    flags = ["-std=c++20", "-O1", "-w", "-fPIC", "-shared", "-pthread", f"-I{HEADERS}"]
    flags += ["-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"]  # as a GPU would
    subprocess.run([compiler, *flags, *sources, "-o", str(path)], check=True)
    return HostLibrary(path)


@pytest.fixture(params=["host", "device"])
def place(request, monkeypatch):
    """Where the tensors lie that the kernels are given."""
    if request.param == "device":
        if (reason := cuda_refusal()) is not None:
            pytest.skip(reason)
        return "cuda"
    host_library = request.getfixturevalue("host_library")
    for module in (adamw_cuda, gradient_norm_cuda):
        monkeypatch.setattr(module, "library", lambda: host_library)
    return "cpu"


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def moved(tensor, place):
    """On the device with the strides, and the distance from the last 16-byte boundary, that it had."""
    if place == "cpu":
        return tensor
    whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
    return whole.to(place).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def gradients(place):
    """All dtypes; whole chunks and ragged ones; a slice aligned to nothing; a transposed view, a view with gaps."""
    sizes = (2 * NORM_CHUNK, NORM_CHUNK, 3 * NORM_CHUNK)
    whole = [normal(size).to(dtype) for size, dtype in zip(sizes, DTYPES, strict=True)]
    odd = [normal(70, 13).T, normal(NORM_CHUNK + 1)[1:], normal(9, 8)[:, ::2], normal(1001).double(), torch.zeros(0)]
    return [moved(each, place) for each in (*whole, *odd, torch.tensor(3.0))]


def test_squared_norm_is_the_sum_of_squares(place):
    given = gradients(place)
    expected = sum(each.double().square().sum().item() for each in given)
    got = gradient_norm_cuda.gradient_norm(given)
    assert (got.dtype, got.shape) == (torch.float32, ())
    assert got.item() == pytest.approx(expected, rel=4 * 2.0**-24)
    assert torch.equal(got, gradient_norm_cuda.gradient_norm(given)), "the same gradients give the same bits"


def test_more_gradients_than_a_table_holds(place):
    few, none = torch.full((2,), 2.0, device=place), torch.zeros(0, device=place)
    assert gradient_norm_cuda.gradient_norm([few] * 1025 + [none]).item() == 8 * 1025
    assert gradient_norm_cuda.gradient_norm([none]).item() == 0


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_bad_gradients_show(bad, place):
    given = [torch.ones(5, device=place), torch.tensor([1.0, bad], device=place)]
    assert not gradient_norm_cuda.gradient_norm(given).isfinite()


def state(place, *, gradient_dtype=torch.float32, copy_dtype=torch.bfloat16):
    """adamw's arguments: whole chunks and a ragged end, one value, a master that is a slice aligned to nothing."""
    sizes = (2 * ADAMW_CHUNK, ADAMW_CHUNK + 77, 1, ADAMW_CHUNK, 0)
    lists = {name: [normal(size, seed=seed) for size in sizes] for seed, name in enumerate(STATE)}
    lists["moments2"] = [each.square() for each in lists["moments2"]]
    lists["masters"][3] = normal(ADAMW_CHUNK + 1, seed=9)[1:]
    lists["gradients"] = [normal(size, seed=5).to(gradient_dtype) for size in sizes]
    lists["copies"] = [torch.full((size,), torch.nan, dtype=copy_dtype) for size in sizes]
    lists = {name: [moved(each, place) for each in tensors] for name, tensors in lists.items()}
    return lists | {"update": inputs(ODD, device=place)["update"]}


def assert_steps_agree(given, expected):
    kept = [each.clone() for each in given["gradients"]]
    adamw_cuda.adamw(**given)
    adamw_reference(**expected)
    for name in STATE:
        for got, wanted in zip(given[name] or [], expected[name] or [], strict=True):
            # 1 ULP, and what cancels near zero: the kernel multiplies and adds in one rounding.
            torch.testing.assert_close(got, wanted, rtol=2**-22, atol=2**-22)
    for copy, master in zip(given["copies"] or [], given["masters"], strict=bool(given["copies"])):
        assert torch.equal(copy, master.to(copy.dtype))
    assert all(torch.equal(*pair) for pair in zip(given["gradients"], kept, strict=True))


@pytest.mark.parametrize("copy_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gradient_dtype", DTYPES, ids=str)
def test_a_step_is_the_references(gradient_dtype, copy_dtype, place):
    dtypes = {"gradient_dtype": gradient_dtype, "copy_dtype": copy_dtype}
    assert_steps_agree(state(place, **dtypes), state(place, **dtypes))


@pytest.mark.parametrize("absent", [("emas",), ("copies",), ("emas", "copies")], ids=str)
def test_averages_and_copies_may_be_absent(absent, place):
    none = dict.fromkeys(absent)
    assert_steps_agree(state(place) | none, state(place) | none)


def test_the_first_step_corrects_its_bias(place):
    first = {"update": replace(inputs(ODD, device=place)["update"], step=1)}
    assert_steps_agree(state(place) | first, state(place) | first)


def test_more_parameters_than_a_table_holds(place):
    def many():
        lists = {
            name: list(normal(520, 3, seed=seed).abs().to(place)) for seed, name in enumerate((*STATE, "gradients"))
        }
        return lists | {"copies": None, "update": inputs(ODD, device=place)["update"]}

    assert_steps_agree(many(), many())


def test_zero_stays_zero(place):
    zeros = [[torch.zeros(3, 5, device=place)] for _ in range(5)]
    adamw_cuda.adamw(*zeros, None, inputs(ODD, device=place)["update"])
    assert not any(each.any() for (each,) in zeros)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"gradients": lambda x: x.double()}, ["gradients are torch.float64", "float16", "adamw=reference"]),
        ({"moments1": lambda x: x.bfloat16()}, ["moments1 are torch.bfloat16", "torch.float32"]),
        ({"emas": lambda x: x[:-1]}, ["emas", "masters"]),
        ({"copies": lambda x: x.repeat(2)[::2]}, ["copies", "contiguous"]),
    ],
)
def test_what_the_kernel_would_misread_is_refused(changed, words, place):
    given = state(place)
    for name, change in changed.items():
        given[name] = [change(each) for each in given[name]]
    with pytest.raises(ValueError) as refusal:
        adamw_cuda.adamw(**given)
    assert all(word in str(refusal.value) for word in words), str(refusal.value)
    with pytest.raises(ValueError, match="complex64.*float64"):
        gradient_norm_cuda.gradient_norm([torch.ones(2, dtype=torch.complex64, device=place)])
