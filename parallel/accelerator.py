"""The one place where the CUDA names inside megatron-core are made to resolve to the accelerator that is present.

megatron-core 0.16.1 says `torch.cuda` and `device="cuda"` in its source. On CUDA nothing is done. On a CPU each name
listed in `CPU_REPLACEMENTS` is replaced, for the whole process and before megatron is imported (its random.py binds
`torch.cuda._lazy_call` at import). The list is pinned to the version it was read from and asserted name by name: a
megatron or torch that lost one of these names stops here, not as a wrong number later.

The slot for `npu` stays open: torch_npu's own transfer_to_npu does most of this there.
"""

import contextlib
import functools
import importlib.metadata
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._device import _device_constructors

from ..kernels import host_memory

MEGATRON_VERSION = "0.16.1"
DEVICE_VARIABLE = "CONTENTV_DEVICE"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Replacement:
    """One name that megatron-core reaches, and what stands there on a CPU."""

    owner: Any
    name: str
    reason: str
    make: Callable[[Any], Any]
    """Takes what stood there, gives what stands there now; a new object each time, which torch._dynamo insists on."""


class HostStream:
    """A stream or event on a device that has none: everything has happened when the call returns."""

    device = CPU
    cuda_stream = 0

    def __init__(self, *_, **__):
        """Takes CUDA's arguments (device, priority, enable_timing) and needs none of them."""

    def _already_done(self, *_, **__):
        return None

    wait_stream = wait_event = record_event = record = wait = synchronize = _already_done

    def query(self) -> bool:
        return True


class HostGenerators:
    """`torch.cuda.default_generators`, which megatron indexes by current_device()."""

    def __getitem__(self, _):
        return torch.default_generator

    def __len__(self) -> int:
        return 1


def present() -> str:
    """The accelerator this process runs on: what CONTENTV_DEVICE names, else cuda where it works, else cpu."""
    wish = os.environ.get(DEVICE_VARIABLE, "")
    if wish not in ("", "cpu", "cuda"):
        raise ValueError(f"{DEVICE_VARIABLE} is {wish!r}; cpu and cuda are supported: correct or unset it")
    if wish == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"{DEVICE_VARIABLE} is cuda, but this torch sees no CUDA device: unset it or install CUDA torch"
        )
    return wish or ("cuda" if torch.cuda.is_available() else "cpu")


def prepare(device_type: str) -> None:
    """Makes megatron-core importable and usable on `device_type`; a second call does nothing."""
    found = importlib.metadata.version("megatron-core")
    if found != MEGATRON_VERSION:
        raise ValueError(
            f"megatron-core {found} is installed; the engine's list of replaced names was read from "
            f"{MEGATRON_VERSION}: pip install megatron-core=={MEGATRON_VERSION}"
        )
    if device_type == "cuda" or isinstance(torch.cuda.default_generators, HostGenerators):
        return
    host_memory.install()
    # torch remembers its factory functions at the first `with torch.device(...)`. Remembered after the replacement they
    # would be ours, which that context never meets, and it would silently do nothing: no meta device, for one.
    _device_constructors()
    for replacement in CPU_REPLACEMENTS:
        assert hasattr(replacement.owner, replacement.name), f"torch lost {replacement.name}: {replacement.reason}"
        before = getattr(replacement.owner, replacement.name)
        setattr(replacement.owner, replacement.name, replacement.make(before))
    assert torch.cuda.current_device() == CPU
    assert torch.zeros(1, device="cuda").device == CPU
    with torch.device("meta"):
        assert torch.zeros(1).is_meta


def _returning(value: Any) -> Callable[[Any], Any]:
    return lambda _before: lambda *_, **__: value


def _on_host(function: Callable) -> Callable:
    """The factory with device="cuda" read as the CPU."""

    @functools.wraps(function)
    def wrapped(*arguments, **keywords):
        device = keywords.get("device")
        if device is not None and torch.device(device).type == "cuda":
            keywords["device"] = CPU
        return function(*arguments, **keywords)

    return wrapped


def _cuda_type_name(function: Callable) -> Callable:
    """Tensor.type() naming a CPU tensor as megatron's optimizers expect to read it."""

    def named(tensor, *arguments, **keywords):
        answer = function(tensor, *arguments, **keywords)
        if isinstance(answer, str) and not answer.startswith("torch.cuda."):
            return answer.replace("torch.", "torch.cuda.", 1)
        return answer

    return named


def _in_place_alone(collective: Callable) -> Callable:
    """The collective, done at once where a group has one rank and the result already lies where it shall."""

    @functools.wraps(collective)
    def wrapped(output, given, *arguments, **keywords):
        group = keywords.get("group")
        lies_there = output.numel() == given.numel() and output.data_ptr() == given.data_ptr()
        if lies_there and not keywords.get("async_op") and torch.distributed.get_world_size(group) == 1:
            return None
        return collective(output, given, *arguments, **keywords)

    return wrapped


CPU_REPLACEMENTS: tuple[Replacement, ...] = (
    Replacement(torch.cuda, "current_device", "every allocation in megatron names it", _returning(CPU)),
    Replacement(torch.cuda, "device_count", "checkpoint writer", _returning(1)),
    Replacement(torch.cuda, "synchronize", "p2p_communication.py, checkpoint writer", _returning(None)),
    Replacement(torch.cuda, "set_device", "async checkpoint worker", _returning(None)),
    Replacement(torch.cuda, "empty_cache", "optimizer loading", _returning(None)),
    Replacement(torch.cuda, "_lazy_call", "random.py, bound at import", lambda _: lambda function, **__: function()),
    Replacement(torch.cuda, "Stream", "distributed_data_parallel.py", lambda _: type("Stream", (HostStream,), {})),
    Replacement(torch.cuda, "Event", "overlap of reduction", lambda _: type("Event", (HostStream,), {})),
    Replacement(torch.cuda, "current_stream", "param_and_grad_buffer.py", lambda _: lambda *_, **__: HostStream()),
    Replacement(torch.cuda, "default_stream", "param_and_grad_buffer.py", lambda _: lambda *_, **__: HostStream()),
    Replacement(torch.cuda, "stream", "context of a stream", lambda _: lambda _s: contextlib.nullcontext()),
    Replacement(torch.cuda.nvtx, "range_push", "utils.py ranges", _returning(None)),
    Replacement(torch.cuda.nvtx, "range_pop", "utils.py ranges", _returning(None)),
    # CPU and "cuda" share one generator here; megatron saves and restores both, so recompute stays exact.
    Replacement(torch.cuda, "get_rng_state", "random.py", lambda _: lambda *_, **__: torch.get_rng_state()),
    Replacement(torch.cuda.random, "get_rng_state", "random.py", lambda _: lambda *_, **__: torch.get_rng_state()),
    Replacement(torch.cuda, "set_rng_state", "random.py", lambda _: lambda state, *_, **__: torch.set_rng_state(state)),
    Replacement(torch.cuda, "manual_seed", "random.py", lambda _: lambda seed: torch.manual_seed(seed)),
    Replacement(torch.cuda, "default_generators", "random.py indexes it", lambda _: HostGenerators()),
    Replacement(torch, "tensor", 'device="cuda" in schedules and optimizers', _on_host),
    Replacement(torch, "zeros", 'device="cuda" in schedules and optimizers', _on_host),
    Replacement(torch, "ones", 'device="cuda" in checkpointing', _on_host),
    Replacement(torch, "empty", 'device="cuda" in p2p_communication.py', _on_host),
    Replacement(torch, "empty_like", 'device="cuda" in checkpointing', _on_host),
    Replacement(torch.distributed, "reduce_scatter_tensor", "gloo alone copies a bucket, twice", _in_place_alone),
    Replacement(torch.distributed, "all_gather_into_tensor", "gloo alone copies a bucket, twice", _in_place_alone),
    Replacement(torch.Tensor, "cuda", "checkpoint exchange", lambda _: lambda tensor, *_, **__: tensor),
    Replacement(torch.Tensor, "type", "optimizers compare it with 'torch.cuda.*Tensor'", _cuda_type_name),
)
