"""AdamW by csrc/cpu/optimizer.cpp."""

from ..native import kernels
from .operator import operator

adamw = operator("cpu_native", kernels.adamw)
