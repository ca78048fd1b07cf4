"""Joint attention by csrc/cpu/attention.cpp."""

from ..native import kernels
from .operator import operator

joint_attention = operator("cpu_native", kernels.joint_attention, kernels.joint_attention_backward)
