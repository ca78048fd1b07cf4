"""Which accelerator is present: the one place on this floor that asks."""

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
