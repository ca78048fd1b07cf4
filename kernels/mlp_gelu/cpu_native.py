"""Bias and tanh-GELU by csrc/cpu/mlp_gelu.cpp."""

from ..native import kernels
from .operator import operator

mlp_gelu = operator("cpu_native", kernels.mlp_gelu, kernels.mlp_gelu_backward)
