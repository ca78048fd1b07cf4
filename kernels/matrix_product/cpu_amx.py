"""The product of fp32 matrices by csrc/cpu/product_amx.cpp, on the unit that some x86 processors have for bf16 ones.

Thin ones, such as the modulation's of a row a sample, are left to torch.
"""

import torch

from ..native import kernels
from .operator import operator

_FEW = 16
"""Rows of a tile register: with fewer of them, or with less depth, packing takes longer than the product."""


def _multiply(left_NI, right_IO, bias_O, out_NO, add):
    for tensor in (left_NI, right_IO, out_NO) if bias_O is None else (left_NI, right_IO, bias_O, out_NO):
        if tensor.dtype != torch.float32:
            raise ValueError(f"matrix_product cpu_amx takes float32, not {tensor.dtype}: choose torch_blas for it")
    if min(left_NI.shape) < _FEW:
        start = out_NO if bias_O is None else bias_O
        torch.addmm(start, left_NI, right_IO, beta=int(add or bias_O is not None), out=out_NO)
    else:
        kernels.matrix_product_amx(left_NI, right_IO, bias_O, out_NO, add)


matrix_product = operator("cpu_amx", _multiply)
