"""A SIMULATION that stands where Huawei's torch_npu would: the same names, over a device that is host memory.

It is no torch_npu, and nothing in it was taken from there. It has what the engine asks of torch_npu, so that the engine
can be executed on a device named npu where there is none: `torch.npu`, the operators `torch.ops.npu.*` with reference
arithmetic behind the real schemas (operators.py), and `hccl` over gloo (hccl.py). What passes here says that tensors
lie on the device, that calls bind and that the mathematics is right. It says nothing of an NPU's kernels, their order,
rounding or speed.

torch imports it by itself, as it does the real one: tests/ascend/simulation.py lays an entry point beside it.
"""

import os

import torch

__version__ = "2.13.0"

torch.ops.load_library(os.environ["CONTENTV_SIMULATED_NPU"])
torch.utils.rename_privateuse1_backend("npu")

from . import npu  # noqa: E402 - what it names exists only now

npu.hand_over_generators()
torch._register_device_module("npu", npu)
torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)

from . import hccl, operators  # noqa: E402

operators.register()
hccl.register()


def __getattr__(name: str):
    """The operators stand at the top of torch_npu too, where transformers and diffusers look for them."""
    if not name.startswith("npu_"):
        raise AttributeError(f"the simulated torch_npu has no {name}")
    return getattr(torch.ops.npu, name)


def _autoload() -> None:
    """What torch calls at the end of its own import; all is done by then."""
