"""AdamW by csrc/cuda/adamw.cu: 512 parameters in a launch, every byte of their state read and written once."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from ..cuda_library import DTYPES, counts, library, pointer, pointers
from .operator import operator

LOW = (torch.float32, torch.bfloat16, torch.float16)
"""What gradients and copies may be."""


class Tensors(ctypes.Structure):
    """ContentvAdamWTensors of adamw.cu."""

    _fields_ = (
        ("tensors", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in ("masters", "gradients", "moments1", "moments2", "emas", "copies")),
        ("counts", ctypes.c_void_p),
        ("gradient_dtype", ctypes.c_int),
        ("copy_dtype", ctypes.c_int),
    )


def kernel(
    masters: Sequence[Tensor], gradients: Sequence[Tensor], moments1: Sequence[Tensor], moments2: Sequence[Tensor],
    emas: Sequence[Tensor], copies: Sequence[Tensor], clip_factor: Tensor, lr: float, beta1: float, beta2: float,
    epsilon: float, weight_decay: float, step: int, ema_decay: float,
) -> None:  # fmt: skip
    lists = {
        "masters": masters, "gradients": gradients, "moments1": moments1, "moments2": moments2, "emas": emas,
        "copies": copies,
    }  # fmt: skip
    check(lists)
    # ctypes keeps no array alive whose address it was given: these names do, until the launch has copied them.
    arrays = {name: pointers(tensors) if tensors else None for name, tensors in lists.items()}
    sizes = counts(masters)
    tensors = Tensors(
        tensors=len(masters), **{name: ctypes.cast(array, ctypes.c_void_p) for name, array in arrays.items()},
        counts=ctypes.cast(sizes, ctypes.c_void_p), gradient_dtype=DTYPES[gradients[0].dtype],
        copy_dtype=DTYPES[copies[0].dtype] if copies else -1,
    )  # fmt: skip
    numbers = (ctypes.c_float * 9)(
        1 - lr * weight_decay, 1 - beta1, beta2, 1 - beta2, (1 - beta2**step) ** 0.5, epsilon, lr / (1 - beta1**step),
        ema_decay, 1 - ema_decay,
    )  # fmt: skip
    library().launch("contentv_adamw", masters[0].device, ctypes.byref(tensors), pointer(clip_factor), numbers)


def check(lists: dict[str, Sequence[Tensor]]) -> None:
    """ValueError for tensors that the kernel would misread."""
    sizes = [each.numel() for each in lists["masters"]]
    for name, tensors in lists.items():
        allowed = LOW if name in ("gradients", "copies") else (torch.float32,)
        dtypes = {each.dtype for each in tensors}
        if len(dtypes) > 1 or not dtypes <= set(allowed):
            raise ValueError(
                f"{name} are {', '.join(sorted(map(str, dtypes)))}; gpu_cuda takes one of "
                f"{', '.join(map(str, allowed))} for all of them: convert them, or wish for adamw=reference"
            )
        if tensors and [each.numel() for each in tensors] != sizes:
            raise ValueError(f"{name} have other numbers of values than masters: give every parameter its own")
        if not all(each.is_contiguous() for each in tensors):
            raise ValueError(f"{name} are not all contiguous: hand over contiguous tensors, or slices of flat buffers")


adamw = operator("gpu_cuda", kernel)
