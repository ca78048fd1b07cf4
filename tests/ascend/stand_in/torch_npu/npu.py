"""`torch.npu` of the simulated device: the names that the engine and torch itself ask of a device's module."""

import contextlib
from types import SimpleNamespace

import torch

_simulation = torch.ops.npu_simulation
NAME = "Ascend910B3 (simulated)"
MEMORY = 64 * 2**30
default_generators = tuple(torch.Generator() for _ in range(_simulation.device_count()))


def hand_over_generators() -> None:
    """Each device draws from its own, apart from the CPU's."""
    for index, generator in enumerate(default_generators):
        _simulation.set_generator(index, generator)


def is_available() -> bool:
    return device_count() > 0


def is_initialized() -> bool:
    return True


def device_count() -> int:
    return _simulation.device_count()


def current_device() -> int:
    return _simulation.current_device()


def set_device(device) -> None:
    _simulation.set_device(_index(device))


class device(contextlib.ContextDecorator):
    """Chooses a device inside a `with`."""

    def __init__(self, device):
        self.index = _index(device)

    def __enter__(self):
        self.before = current_device()
        set_device(self.index)

    def __exit__(self, *_):
        set_device(self.before)


class device_of(device):
    """Chooses the device of a tensor; the current one where it lies elsewhere."""

    def __init__(self, tensor):
        super().__init__(tensor.get_device() if tensor.device.type == "npu" else current_device())


def synchronize(device=None) -> None:
    torch.accelerator.synchronize(torch.device("npu", _index(device)))


def get_device_name(device=None) -> str:
    return NAME


def get_device_properties(device=None) -> SimpleNamespace:
    return SimpleNamespace(name=NAME, total_memory=MEMORY, L2_cache_size=192 * 2**20)


def memory_allocated(device=None) -> int:
    return _simulation.held()


def max_memory_allocated(device=None) -> int:
    return _simulation.peak()


def reset_peak_memory_stats(device=None) -> None:
    _simulation.reset_peak()


def empty_cache() -> None:
    """Nothing is kept back."""


def get_rng_state(device="npu") -> torch.Tensor:
    return default_generators[_index(device)].get_state()


def set_rng_state(state: torch.Tensor, device="npu") -> None:
    default_generators[_index(device)].set_state(state)


def manual_seed(seed: int) -> None:
    default_generators[current_device()].manual_seed(seed)


def manual_seed_all(seed: int) -> None:
    for generator in default_generators:
        generator.manual_seed(seed)


def get_amp_supported_dtype() -> list[torch.dtype]:
    return [torch.bfloat16, torch.float16]


def is_bf16_supported() -> bool:
    return True


def _is_in_bad_fork() -> bool:
    return False


class Stream(torch.Stream):
    """A queue whose work is done when the call returns."""

    def __new__(cls, device=None, priority=0):
        return super().__new__(cls, torch.device("npu", _index(device)), priority=priority)


class Event(torch.Event):
    """The time at which it was recorded."""

    def __new__(cls, enable_timing=False, blocking=False, interprocess=False):
        # torch measures between events of its own class alone.
        return torch.Event("npu", enable_timing=enable_timing, blocking=blocking)


def current_stream(device=None) -> torch.Stream:
    return torch.accelerator.current_stream(torch.device("npu", _index(device)))


def default_stream(device=None) -> torch.Stream:
    return torch.Stream(stream_id=0, device_index=_index(device), device_type=_DEVICE_TYPE)


def stream(chosen: torch.Stream | None):
    """Works in that stream inside a `with`."""
    return contextlib.nullcontext() if chosen is None else chosen


_DEVICE_TYPE = torch.Stream(device="npu").device_type


def _index(device) -> int:
    if device is None:
        return current_device()
    if isinstance(device, int):
        return device
    index = torch.device(device).index
    return current_device() if index is None else index
