"""Gated residual and the norm that follows by csrc/cpu/norms.cpp."""

from ..native import kernels
from .operator import operator

gated_residual_norm = operator("cpu_native", kernels.gated_residual_norm, kernels.gated_residual_norm_backward)
