"""What the backends that are not plain torch need of a machine, and why one of them cannot run here."""

from importlib.util import find_spec
from pathlib import Path

import torch

NATIVE_FOLDER = Path(__file__).resolve().parents[1] / "csrc"


def native_refusal() -> str | None:
    """Why csrc/cpu cannot run here; None if it can."""
    if native_library("cpu") is None:
        return "csrc/cpu is not built: install the engine where a C++ compiler is, and read what setup.py says"
    return None


def amx_refusal() -> str | None:
    """Why products cannot be left to the processor's matrix unit; None if they can."""
    if reason := native_refusal():
        return reason
    from .native import matrix_unit_refusal  # loads the library

    return matrix_unit_refusal()


def triton_refusal() -> str | None:
    """Why the Triton kernels cannot run here; None if they can."""
    if find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    if not torch.cuda.is_available():
        return "no CUDA device is there"
    capability = torch.cuda.get_device_capability()
    return None if capability >= (8, 0) else f"sm_{capability[0]}{capability[1]} is too old; sm_80 or newer is needed"


def npu_triton_refusal() -> str | None:
    """Why the Triton-Ascend kernels cannot run here; None if they can."""
    found = find_spec("triton")
    if found is None or not Path(found.origin).with_name("backends").joinpath("ascend").is_dir():
        return "triton-ascend is not installed: pip install triton-ascend, in the place of triton"
    npu = getattr(torch, "npu", None)
    return None if npu is not None and npu.is_available() else "no NPU is there"


def cuda_refusal() -> str | None:
    """Why csrc/cuda cannot run here; None if it can."""
    if native_library("cuda") is None:
        return "csrc/cuda is not built: install the engine where nvcc and a CUDA build of torch are"
    return None if torch.cuda.is_available() else "no CUDA device is there"


def native_library(name: str) -> Path | None:
    """The library that setup.py built from csrc/`name`; None if it did not."""
    return next(iter(sorted(NATIVE_FOLDER.glob(f"_{name}*.so"))), None)
