"""The product by csrc/cpu/product.cpp: every dtype, on any processor."""

from ..native import kernels
from .operator import operator

matrix_product = operator("cpu_native", kernels.matrix_product)
