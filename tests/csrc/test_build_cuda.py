"""csrc/build_cuda.py: builds where it can, says why where it does not, refuses where it must."""

import ctypes
import importlib.util
import stat
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "csrc" / "build_cuda.py"
FUNCTIONS = ("contentv_gradient_norm", "contentv_gradient_norm_chunks", "contentv_adamw", "contentv_cuda_error")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.delenv("CONTENTV_CUDA", raising=False)
    specification = importlib.util.spec_from_file_location("build_cuda", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def fake_nvcc(tmp_path, script, monkeypatch):
    """fake_nvcc(release, compiles): a compiler that says it is that one."""

    def make(release, compiles=True):
        nvcc = tmp_path / "nvcc"
        says = f'echo "Cuda compilation tools, release {release}, V{release}.88"'
        nvcc.write_text(
            f'#!/bin/sh\n[ "$1" = --version ] && {{ {says}; exit 0; }}\necho "no $1"; exit {1 - compiles}\n'
        )
        nvcc.chmod(nvcc.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(script, "compiler", lambda: str(nvcc))

    return make


def test_without_a_compiler_it_is_left_out_and_says_so(script, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(script, "compiler", lambda: None)
    assert script.build(tmp_path) is None
    assert "csrc/cuda: left out (there is no nvcc" in capfd.readouterr().err


def test_what_is_asked_for_and_cannot_be_is_refused(script, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "compiler", lambda: None)
    monkeypatch.setenv("CONTENTV_CUDA", "1")
    with pytest.raises(ValueError, match="CONTENTV_CUDA=1 asks for csrc/cuda, but there is no nvcc: install CUDA 12.1"):
        script.build(tmp_path)


def test_an_old_compiler_is_none(script, fake_nvcc, tmp_path, capfd):
    fake_nvcc("11.8")
    assert script.build(tmp_path) is None
    assert "CUDA 11.8; 12.1 or newer is needed" in capfd.readouterr().err


def test_it_can_be_left_out(script, monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("CONTENTV_CUDA", "0")
    assert script.build(tmp_path) is None and "CONTENTV_CUDA=0" in capfd.readouterr().err
    monkeypatch.setenv("CONTENTV_CUDA", "yes")
    with pytest.raises(ValueError, match="'yes'; 1 asks for csrc/cuda, 0 leaves it out"):
        script.build(tmp_path)


def test_a_compiler_that_fails_is_no_silence(script, fake_nvcc, tmp_path):
    fake_nvcc("13.0", compiles=False)
    with pytest.raises(ValueError, match="(?s)cannot compile csrc/cuda; CONTENTV_CUDA=0 leaves it out.*no -std"):
        script.build(tmp_path)


@pytest.mark.parametrize(
    ("release", "targets"),
    [("12.1", ["sm_80", "sm_90a"]), ("12.8", ["sm_80", "sm_90a", "sm_100a"]), ("13.0", ["sm_80", "sm_90a", "sm_100a"])],
)
def test_it_builds_for_what_the_compiler_knows(script, fake_nvcc, release, targets):
    fake_nvcc(release)
    assert script.targets() == targets
    command = script.command(Path("library.so"))
    assert sum("code=sm_" in part for part in command) == len(targets)
    assert "-gencode=arch=compute_80,code=compute_80" in command, "every other chip runs PTX"


@pytest.mark.slow
def test_the_library_is_whole(script, tmp_path):
    if reason := script.compiler_refusal():
        pytest.skip(reason)
    library = ctypes.CDLL(str(script.build(tmp_path)))
    assert all(hasattr(library, name) for name in FUNCTIONS)
    library.contentv_gradient_norm_chunks.restype = ctypes.c_int64
    counts = (ctypes.c_int64 * 3)(16384, 16385, 0)
    assert library.contentv_gradient_norm_chunks(3, counts) == 3
