"""QK-RMSNorm and rotation by csrc/cpu/qk_norm_rope.cpp."""

from ..native import kernels
from .operator import operator

qk_norm_rope = operator("cpu_native", kernels.qk_norm_rope, kernels.qk_norm_rope_backward)
