"""Where large CPU tensors lie: in the arena of csrc/memory instead of malloc's heap.

Sizes repeat from step to step; glibc's heap, cut up by torch's aligned blocks, grows to a third more than the tensors
need (docs/measured.md). Values do not depend on it: where it cannot be had, memory is all that is lost.
"""

import ctypes
from functools import cache

import torch

from .toolchains import native_library


def install() -> str | None:
    """Makes the arena torch's CPU allocator, for the whole process. Returns why not; None if it is."""
    arena = _arena()
    return arena if isinstance(arena, str) else None


@cache
def _arena() -> ctypes.CDLL | str:
    """The library by which torch now allocates, or why it does not."""
    found = native_library("memory")
    if found is None:
        return "csrc/memory is not built: install the engine where a C++ compiler is, and read what setup.py says"
    library = ctypes.CDLL(str(found))
    library.contentv_memory_torch.restype = ctypes.c_char_p
    library.contentv_memory_install.restype = library.contentv_memory_clear.restype = ctypes.c_bool
    library.contentv_memory_clear.argtypes = ctypes.c_void_p, ctypes.c_size_t
    built = library.contentv_memory_torch().decode()
    present = torch.__version__.split("+")[0]
    if built != present:
        return f"csrc/memory was built for torch {built}, and this is {present}: install the engine again"
    if not library.contentv_memory_install():
        return "the system grants no addresses for as much memory as the machine has (vm.overcommit_memory, ulimit -v)"
    return library


def clear(tensor: torch.Tensor) -> None:
    """Zeros in a contiguous tensor. In the arena its pages go back, and are there again as they are written to."""
    # A fake tensor says that it is on a CPU; its storage tells that there is nothing to clear.
    size, is_here = tensor.numel() * tensor.element_size(), tensor.untyped_storage().device.type == "cpu"
    arena = _arena() if is_here else ""
    if isinstance(arena, str) or not arena.contentv_memory_clear(tensor.data_ptr(), size):
        tensor.zero_()
