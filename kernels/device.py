"""What a device says of itself, and what the engine asks of it: the one place above torch that tells devices apart.

`torch.cuda` and `torch.npu` have the same names, so most of this is one line for both (`interface`).
"""

import contextlib
import platform
import re
import resource
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

_CYCLES = 2e9
"""Of a GPU's clock in a second, no less."""


def interface(device_type: str) -> ModuleType:
    """The module of torch behind which an accelerator's devices, streams, events and memory are."""
    return torch.get_device_module(device_type)


def is_accelerator(device: torch.device) -> bool:
    """Whether it has memory and a queue of its own, apart from the host's."""
    return device.type not in ("cpu", "meta")


def choose(device: torch.device) -> None:
    """Makes it the one that is meant where a call names none."""
    if is_accelerator(device):
        interface(device.type).set_device(device)


def chosen_for(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Inside, the tensor's device is the one that is meant: launches of kernels go there."""
    if not is_accelerator(tensor.device):
        return contextlib.nullcontext()
    return interface(tensor.device.type).device_of(tensor)


def repeat_bits(device: torch.device, wanted: bool) -> None:
    """Asks a device's vendor for sums in an order that is always the same, where it has others by default.

    On an NPU those are matrix products, the gradients of attention and of RMSNorm, and more. CANN takes the switch once
    a thread, before its first operator (CANN 8.3, operator library, deterministic computing), so it cannot be turned
    for one call: a run asks at its start. Memory is not filled with NaN on that account.
    """
    if device.type == "npu":
        torch.use_deterministic_algorithms(wanted, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False


def peak_memory_mib(device: torch.device) -> float:
    """Largest memory so far, in MiB: of the accelerator's allocator, or of this process on a CPU."""
    if is_accelerator(device):
        return interface(device.type).max_memory_allocated(device) / 2**20
    if platform.system() == "Linux":
        # Not getrusage: a process begins with the maximum of the one that started it.
        return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def name_of(device: torch.device) -> str:
    """The name its driver reports, such as NVIDIA H200 or Ascend910B3; of a CPU just cpu."""
    return interface(device.type).get_device_name(device) if is_accelerator(device) else device.type


def wait_for(device: torch.device) -> None:
    """Returns once everything given to the device has been done."""
    if is_accelerator(device):
        interface(device.type).synchronize(device)


def sent_to(device: torch.device, tensor: Tensor) -> Tensor:
    """A host's tensor on the device; to an accelerator from pinned memory, so that the host does not wait for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if is_accelerator(device) else tensor.to(device)


def processors(device: torch.device) -> int:
    """How many programs of a GPU kernel it works on at once, at the least; a few where none runs."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def last_cache_bytes(device: torch.device) -> int:
    """Of the cache before its memory; 0 where that is not told."""
    if not is_accelerator(device):
        return 0
    return getattr(interface(device.type).get_device_properties(device), "L2_cache_size", 0)


def adds_products_in_fp32(tensor: Tensor) -> bool:
    """Whether torch has, for this device, a product of 16-bit factors that is added to an fp32 sum."""
    return tensor.is_cuda


def cuda_capability() -> tuple[int, int] | None:
    """(major, minor) of the CUDA device here; None if there is none."""
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None


def npu_is_there() -> bool:
    """Whether torch_npu is loaded and sees a device."""
    return hasattr(torch, "npu") and torch.npu.is_available()


def toolkits() -> dict[str, str]:
    """Name and version of what torch was built for."""
    return {"cuda": torch.version.cuda or "none"}


def recording_for_tools(device: torch.device) -> contextlib.AbstractContextManager:
    """Inside, nsys and ncu record, where they were told to wait for it; others record by their own options."""
    return torch.cuda.profiler.profile() if device.type == "cuda" else contextlib.nullcontext()


@contextlib.contextmanager
def marked(name: str, device: torch.device) -> Iterator[None]:
    """A range of that name for the vendor's tools: NVTX's (nsys, ncu) or mstx's (msprof); none on a CPU."""
    if device.type == "npu":
        mark = interface(device.type).mstx.range_start(name)
        try:
            yield
        finally:
            interface(device.type).mstx.range_end(mark)
    elif device.type == "cuda":
        with torch.cuda.nvtx.range(name):
            yield
    else:
        yield


def record_allocations(device: torch.device) -> None:
    """Begins to keep who allocates what; on a GPU alone, since no other allocator of torch tells."""
    if device.type == "cuda":
        torch.cuda.memory._record_memory_history()


def save_allocations(device: torch.device, path: Path) -> None:
    """Writes what was kept since `record_allocations`, for pytorch.org/memory_viz, and keeps no more."""
    if device.type == "cuda":
        torch.cuda.memory._dump_snapshot(str(path))
        torch.cuda.memory._record_memory_history(enabled=None)


def profiler_activity(device: torch.device) -> torch.profiler.ProfilerActivity:
    """What torch's profiler can record of the device; of an NPU only its host's side: msprof records the rest."""
    activities = torch.profiler.ProfilerActivity
    return activities.CUDA if device.type == "cuda" else activities.CPU


def seconds_between(calls: list[Callable[[], object]], device: torch.device, pause: float = 0.0) -> list[float]:
    """Seconds that each call takes on an accelerator, by its own clock.

    Args:
        pause: seconds the device is kept busy first, so that the host may queue all calls; on a GPU alone.
    """
    module = interface(device.type)
    if pause and device.type == "cuda":
        torch.cuda._sleep(int(pause * _CYCLES))
    events = [module.Event(enable_timing=True) for _ in range(len(calls) + 1)]
    events[0].record()
    for call, event in zip(calls, events[1:], strict=True):
        call()
        event.record()
    module.synchronize()
    return [begin.elapsed_time(end) / 1e3 for begin, end in pairwise(events)]
