"""Noising by csrc/cpu/flow.cpp."""

from ..native import kernels
from .operator import operator

flow_noise = operator("cpu_native", kernels.flow_noise)
