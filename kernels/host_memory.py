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
    library.contentv_memory_install.restype = ctypes.c_bool
    library.contentv_memory_give_back.argtypes = ctypes.c_void_p, ctypes.c_size_t
    built = library.contentv_memory_torch().decode()
    present = torch.__version__.split("+")[0]
    if built != present:
        return f"csrc/memory was built for torch {built}, and this is {present}: install the engine again"
    if not library.contentv_memory_install():
        return "the system grants no addresses for as much memory as the machine has (vm.overcommit_memory, ulimit -v)"
    return library


def give_back(tensor: torch.Tensor) -> None:
    """Lets go of a contiguous tensor's pages until it is written to. Its values are old or 0 from now on."""
    # A fake tensor says that it is on a CPU; its storage tells that there is nothing to let go of.
    if tensor.untyped_storage().device.type == "cpu" and not isinstance(arena := _arena(), str):
        arena.contentv_memory_give_back(tensor.data_ptr(), tensor.numel() * tensor.element_size())
