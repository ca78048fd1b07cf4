"""What the backends that are not plain torch need of a machine, and why one of them cannot run here."""

from importlib.util import find_spec
from pathlib import Path

from .device import cuda_capability, npu_is_there

NATIVE_FOLDER = Path(__file__).resolve().parents[1] / "csrc"


def native_refusal() -> str | None:
    """Why csrc/cpu cannot run here; None if it can."""
    if native_library("cpu") is None:
        return "csrc/cpu is not built: install the engine where a C++ compiler is, and read what setup.py says"
    return None


def triton_refusal() -> str | None:
    """Why the Triton kernels cannot run here; None if they can."""
    if find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    if (capability := cuda_capability()) is None:
        return "no CUDA device is there"
    return None if capability >= (8, 0) else f"sm_{capability[0]}{capability[1]} is too old; sm_80 or newer is needed"


def npu_triton_refusal() -> str | None:
    """Why the Triton-Ascend kernels cannot run here; None if they can."""
    found = find_spec("triton")
    if found is None or not Path(found.origin).with_name("backends").joinpath("ascend").is_dir():
        return "triton-ascend is not installed: pip install triton-ascend, in the place of triton"
    return npu_refusal()


def cuda_refusal() -> str | None:
    """Why csrc/cuda cannot run here; None if it can."""
    if native_library("cuda") is None:
        return "csrc/cuda is not built: install the engine where nvcc and a CUDA build of torch are"
    return None if cuda_capability() else "no CUDA device is there"


def npu_refusal() -> str | None:
    """Why torch_npu's own operators cannot be used here; None if they can."""
    return None if npu_is_there() else "no NPU is there that torch_npu reaches (docs/ascend.md)"


def native_library(name: str) -> Path | None:
    """The library that setup.py built from csrc/`name`; None if it did not."""
    return next(iter(sorted(NATIVE_FOLDER.glob(f"_{name}*.so"))), None)
