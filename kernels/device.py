"""What a device says of itself."""

import platform
import re
import resource
from pathlib import Path

import torch


def peak_memory_mib(device: torch.device) -> float:
    """Largest memory so far, in MiB: of the accelerator's allocator, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if platform.system() == "Linux":
        # Not getrusage: a process begins with the maximum of the one that started it.
        return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def name_of(device: torch.device) -> str:
    """The name its driver reports, such as NVIDIA H200; of a CPU just cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def wait_for(device: torch.device) -> None:
    """Returns once everything given to the device has been done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
