"""csrc/cpu as this process has it: the library that setup.py built, loaded once, by the first backend that is chosen.

    CONTENTV_CPU_INSTRUCTIONS=avx2 contentv train ...        no AVX-512, though the processor has it

The library holds every kernel several times, once for each instruction set (baseline, avx2, avx512), and takes the best
one that the processor has. Its threads are torch's own: torch.set_num_threads counts for it too.
"""

import torch

from .toolchains import native_library

INSTRUCTION_SETS = ("baseline", "avx2", "avx512")


def _load():
    library = native_library("cpu")
    assert library is not None, "a backend of csrc/cpu was chosen where native_refusal says why it cannot run"
    torch.ops.load_library(library)
    return torch.ops.contentv_native


kernels = _load()
"""torch.ops.contentv_native: an operator for each kernel, which fills outputs already allocated."""


def matrix_unit_refusal() -> str | None:
    """Why products of fp32 cannot be left to the processor's matrix unit (AMX); None if they can."""
    return kernels.matrix_unit_refusal() or None


def instructions(name: str = "") -> str:
    """The instruction set in use; with a name, after changing to that one.

    Raises:
        ValueError: this processor, or this build, has no such set.
    """
    return kernels.instructions(name)
