"""Squared gradient norm by csrc/cuda/gradient_norm.cu: all gradients in one launch, and a second one adds the sums."""

import ctypes
from collections.abc import Sequence

from torch import Tensor

from ..cuda_library import DTYPES, counts, library, pointer, pointers
from .operator import operator


def forward(gradients: Sequence[Tensor], squared: Tensor) -> None:
    for gradient in gradients:
        if gradient.dtype not in DTYPES:
            raise ValueError(
                f"a gradient is {gradient.dtype}; gpu_cuda takes {', '.join(map(str, DTYPES))}: convert it, or wish "
                "for gradient_norm=reference"
            )
    # The order of values does not matter: any layout without gaps is read as it lies.
    dense = [each if is_dense(each) else each.contiguous() for each in gradients]
    dtypes = (ctypes.c_int * len(dense))(*[DTYPES[each.dtype] for each in dense])
    sizes = counts(dense)
    sums = squared.new_empty(library().gradient_norm_chunks(sizes))
    library().launch(
        "contentv_gradient_norm", squared.device, len(dense), pointers(dense), sizes, dtypes, pointer(sums),
        pointer(squared),
    )  # fmt: skip


def is_dense(tensor: Tensor) -> bool:
    """Whether its values fill a piece of memory, in any order and each once."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


gradient_norm = operator("gpu_cuda", forward)
