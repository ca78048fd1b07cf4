"""The product of fp32 matrices by csrc/cpu/product_amx.cpp, on the unit that some x86 processors have for bf16 ones."""

import torch

from ..native import kernels
from .operator import operator


def _multiply(left_NI, right_IO, bias_O, out_NO, add):
    for tensor in (left_NI, right_IO, out_NO) if bias_O is None else (left_NI, right_IO, bias_O, out_NO):
        if tensor.dtype != torch.float32:
            raise ValueError(f"matrix_product cpu_amx takes float32, not {tensor.dtype}: choose torch_blas for it")
    kernels.matrix_product_amx(left_NI, right_IO, bias_O, out_NO, add)


matrix_product = operator("cpu_amx", _multiply)
