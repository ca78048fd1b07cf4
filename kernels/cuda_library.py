"""csrc/cuda, called through ctypes: pointers, counts and torch's stream go in, CUDA's own errors come out."""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from .toolchains import native_library

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
"""The numbers of csrc/cuda/tensors.cuh."""

Pointers = ctypes.Array


class CudaLibrary:
    """The functions of csrc/cuda: each returns CUDA's error code, works on the current device and never waits."""

    def __init__(self, path: Path):
        self._functions = ctypes.CDLL(str(path))
        self._functions.contentv_cuda_error.restype = ctypes.c_char_p
        self._functions.contentv_gradient_norm_chunks.restype = ctypes.c_int64

    def gradient_norm_chunks(self, counts: ctypes.Array) -> int:
        """Floats of scratch memory that contentv_gradient_norm needs."""
        return self._functions.contentv_gradient_norm_chunks(len(counts), counts)

    def launch(self, name: str, device: torch.device, *arguments) -> None:
        """Calls a function with these arguments and the current stream of `device`; RuntimeError if CUDA refuses."""
        with torch.cuda.device(device):
            self.call(name, *arguments, ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream))

    def call(self, name: str, *arguments) -> None:
        error = getattr(self._functions, name)(*arguments)
        if error:
            said = self._functions.contentv_cuda_error(error).decode()
            raise RuntimeError(f"{name} (csrc/cuda): CUDA error {error}: {said}")


@cache
def library() -> CudaLibrary:
    """The library that setup.py built; the registry has asked `cuda_refusal` before."""
    return CudaLibrary(native_library("cuda"))


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def pointers(tensors: Sequence[Tensor]) -> Pointers:
    """Addresses as a C array."""
    return (ctypes.c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])


def counts(tensors: Sequence[Tensor]) -> ctypes.Array:
    """Numbers of values as a C array."""
    return (ctypes.c_int64 * len(tensors))(*[tensor.numel() for tensor in tensors])
