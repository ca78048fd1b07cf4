"""Modulated LayerNorm by csrc/cpu/norms.cpp."""

from ..native import kernels
from .operator import operator

modulated_norm = operator("cpu_native", kernels.modulated_norm, kernels.modulated_norm_backward)
