"""What a device says of itself."""

import resource

import torch


def peak_memory_mib(device: torch.device) -> float:
    """Largest memory so far, in MiB: of the accelerator's allocator, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    # Linux counts in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
