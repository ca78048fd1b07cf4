"""Squared gradient norm by csrc/cpu/optimizer.cpp."""

from ..native import kernels
from .operator import operator

gradient_norm = operator("cpu_native", kernels.gradient_norm)
