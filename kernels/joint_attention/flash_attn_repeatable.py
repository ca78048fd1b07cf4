"""Joint attention that is the fastest of those whose bits repeat: flash-attn forward, our Triton kernels backward.

flash-attn's backward adds d_q with atomics on Hopper, its forward adds nothing: what it gives, out and lse, is all that
another backward needs.
"""

import torch

from ..vendors import flash_attn_generation, flash_attn_refusal
from . import gpu_triton
from .flash_attn import vendor
from .operator import operator
from .vendor import kernels

if flash_attn_refusal() is None:
    _forward, _ = kernels(vendor(flash_attn_generation(torch.cuda.get_device_capability()[0])))
    joint_attention = operator("flash_attn_repeatable", _forward, gpu_triton.backward)
