"""Which accelerator is present: the one place on this floor that asks."""

import resource
from typing import Literal

import torch

DeviceType = Literal["cpu", "cuda", "npu"]


def detect() -> DeviceType:
    """The device type this process should compute on. An NPU shows only once torch_npu has been imported."""
    if torch.cuda.is_available():
        return "cuda"
    if hasattr(torch, "npu") and torch.npu.is_available():
        return "npu"
    return "cpu"


def peak_memory_mib(device: torch.device) -> float:
    """Largest memory so far, in MiB: of the accelerator's allocator, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    # Linux counts in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
