"""Gated residual by csrc/cpu/norms.cpp."""

from ..native import kernels
from .operator import operator

gated_residual = operator("cpu_native", kernels.gated_residual, kernels.gated_residual_backward)
