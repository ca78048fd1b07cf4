"""Flow-matching loss by csrc/cpu/flow.cpp."""

from ..native import kernels
from .operator import operator

flow_loss = operator("cpu_native", kernels.flow_loss, kernels.flow_loss_backward)
