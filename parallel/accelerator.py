"""The one place that knows which accelerator is present, and where megatron-core's CUDA names are made to mean it.

megatron-core 0.16.1 says `torch.cuda` and `device="cuda"` in its source. On CUDA nothing is done. On a CPU each name
listed in `CPU_REPLACEMENTS` is replaced, on an NPU each of `NPU_REPLACEMENTS`, for the whole process and before
megatron is imported (its random.py binds `torch.cuda._lazy_call` at import). The lists are pinned to the version they
were read from and asserted name by name: a megatron or torch that lost one of these names stops here, not as a wrong
number later.

An NPU is reached through Huawei's torch_npu, whose version goes with torch's: 2.11 with 2.11, up to 2.14. Neither its
transfer_to_npu nor MindSpeed is needed; where they are active their replacements stay, and that is said.
"""

import contextlib
import functools
import importlib
import importlib.metadata
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as distributed
from torch.utils._device import _device_constructors

from ..kernels import host_memory
from ..kernels.device import interface, npu_is_there
from ..kernels.ranks import DEVICE_TYPES

MEGATRON_VERSION = "0.16.1"
DEVICE_VARIABLE = "CONTENTV_DEVICE"
NPU_VARIABLE = "USE_ASCEND_NPU"
"""ContentV's own switch: 1 trains on NPUs, 0 does not."""
TORCH_NPU_VERSIONS = ("2.11", "2.12", "2.13", "2.14")
"""The releases whose operators and names were read; each is made for the torch of the same number."""
PROCESS_GROUPS = {"cpu": "gloo", "cuda": "nccl", "npu": "hccl"}
"""Backends of torch.distributed."""
VISIBLE_VARIABLES = {"cuda": "CUDA_VISIBLE_DEVICES", "npu": "ASCEND_RT_VISIBLE_DEVICES"}
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Replacement:
    """One name that megatron-core reaches, and what stands there instead."""

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


class NpuGenerators:
    """The same of NPUs. Looked up when asked: torch_npu makes them with its first use of a device."""

    def __getitem__(self, device: int | torch.device):
        return torch.npu.default_generators[device if isinstance(device, int) else device.index]

    def __len__(self) -> int:
        return torch.npu.device_count()


def present() -> str:
    """The accelerator this process runs on: what CONTENTV_DEVICE or USE_ASCEND_NPU name, else one that works, else cpu.

    Raises:
        ValueError: they name none that there is, contradict each other, or what they name does not work here.
    """
    wish, switch = os.environ.get(DEVICE_VARIABLE, ""), os.environ.get(NPU_VARIABLE, "")
    if wish not in ("", *DEVICE_TYPES):
        raise ValueError(f"{DEVICE_VARIABLE} is {wish!r}; cpu, cuda and npu are supported: correct or unset it")
    if switch not in ("", "0", "1"):
        raise ValueError(f"{NPU_VARIABLE} is {switch!r}; 1 selects npu, 0 does not: correct or unset it")
    if wish and switch and (wish == "npu") != (switch == "1"):
        raise ValueError(f"{DEVICE_VARIABLE} is {wish} and {NPU_VARIABLE} is {switch}: unset one of them")
    wish = "npu" if switch == "1" else wish
    if wish == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"{DEVICE_VARIABLE} is cuda, but this torch sees no CUDA device: unset it or install CUDA torch"
        )
    if wish == "npu" and (reason := _npu_refusal()) is not None:
        raise ValueError(f"{NPU_VARIABLE if switch else DEVICE_VARIABLE} asks for an NPU, but {reason}")
    if wish:
        return wish
    if torch.cuda.is_available():
        return "cuda"
    # torch has loaded torch_npu by itself where it is installed, unless TORCH_DEVICE_BACKEND_AUTOLOAD is 0.
    return "npu" if switch != "0" and npu_is_there() else "cpu"


def _npu_refusal() -> str | None:
    """Why no NPU can be used, after loading torch_npu; None if one can."""
    ours = torch.__version__.split("+")[0]
    try:
        found = importlib.metadata.version("torch_npu")
    except importlib.metadata.PackageNotFoundError:
        return f"torch_npu is not installed: pip install torch_npu=={ours}, after the driver and CANN (docs/ascend.md)"
    series = ".".join(found.split(".")[:2])
    if series not in TORCH_NPU_VERSIONS or series != ".".join(ours.split(".")[:2]):
        known = f"{TORCH_NPU_VERSIONS[0]} to {TORCH_NPU_VERSIONS[-1]}"
        return (
            f"torch_npu {found} does not go with torch {ours}: both are of one number, {known}; pip install "
            f"torch_npu=={ours}, or another torch"
        )
    try:
        importlib.import_module("torch_npu")
    except (ImportError, OSError, RuntimeError) as error:
        return f"torch_npu does not load ({error}): source CANN's set_env.sh first (docs/ascend.md)"
    if not npu_is_there():
        return "torch_npu sees no NPU: look at npu-smi info, ASCEND_RT_VISIBLE_DEVICES and the driver's user group"
    return None


def device_of(device_type: str, local_rank: int) -> torch.device:
    """The device of the process that is number `local_rank` on its node.

    Raises:
        ValueError: the node shows fewer devices than it has processes.
    """
    if device_type == "cpu":
        return CPU
    count = interface(device_type).device_count()
    # A launcher that shows each process one device alone has chosen already.
    index = 0 if count == 1 and _shows_one(device_type) else local_rank
    if index >= count:
        variable = VISIBLE_VARIABLES[device_type]
        raise ValueError(
            f"this process is number {local_rank} on its node, where {count} devices of {device_type} show "
            f"({variable}={os.environ.get(variable, '')}): start no more processes than devices"
        )
    return torch.device(device_type, index)


def _shows_one(device_type: str) -> bool:
    shown = os.environ.get(VISIBLE_VARIABLES[device_type], "")
    return bool(shown) and "," not in shown and "-" not in shown


def shared_device(device_type: str, local_rank: int) -> torch.device:
    """The same for work that needs no world: more processes than devices take turns."""
    if device_type == "cpu":
        return CPU
    return torch.device(device_type, local_rank % interface(device_type).device_count())


def set_up_messages(device_type: str, timeout_seconds: float) -> None:
    """What the library behind the process group reads from the environment. Whatever the user set stays."""
    if device_type == "npu":
        for name, value in hccl_environment(timeout_seconds).items():
            os.environ.setdefault(name, value)


def hccl_environment(timeout_seconds: float) -> dict[str, str]:
    """HCCL's own limits, a little later than the engine's watch, which names the rank that is waited for."""
    seconds = math.ceil(timeout_seconds)
    return {
        # Ranks reach the first collective minutes apart, where a file system is cold. 120 to 7200 are allowed.
        "HCCL_CONNECT_TIMEOUT": str(min(max(seconds, 120), 7200)),
        # A collective waits for the slowest rank, one that saves a checkpoint for example. Counted in steps of 68.
        "HCCL_EXEC_TIMEOUT": str(min(68 * math.ceil((seconds + 60) / 68), 2**31 - 1)),
        # Sums over ranks in an order that is always the same: a resume repeats its bits.
        "HCCL_DETERMINISTIC": "true",
    }


def add_up(values: torch.Tensor) -> None:
    """Sum over all ranks, in place."""
    if values.device.type == "npu" and values.dtype == torch.float64:
        narrow = values.float()  # HCCL adds up to 32 bits
        distributed.all_reduce(narrow)
        values.copy_(narrow)
    else:
        distributed.all_reduce(values)


def prepare(device_type: str) -> None:
    """Makes megatron-core importable and usable on `device_type`; a second call does nothing."""
    found = importlib.metadata.version("megatron-core")
    if found != MEGATRON_VERSION:
        raise ValueError(
            f"megatron-core {found} is installed; the engine's list of replaced names was read from "
            f"{MEGATRON_VERSION}: pip install megatron-core=={MEGATRON_VERSION}"
        )
    if device_type == "cuda" or isinstance(torch.cuda.default_generators, HostGenerators | NpuGenerators):
        return
    # torch remembers its factory functions at the first `with torch.device(...)`. Remembered after the replacement they
    # would be ours, which that context never meets, and it would silently do nothing: no meta device, for one.
    _device_constructors()
    if device_type == "npu":
        _replace(_left_to_us(NPU_REPLACEMENTS))
        # Nothing here may touch a device: it would be the first one of the node, of every rank.
        assert issubclass(torch.cuda.Stream, torch.npu.Stream)
    else:
        host_memory.install()
        _replace(CPU_REPLACEMENTS)
        assert torch.cuda.current_device() == CPU
        assert torch.zeros(1, device="cuda").device == CPU
    with torch.device("meta"):
        assert torch.zeros(1).is_meta


def _replace(replacements: tuple[Replacement, ...]) -> None:
    for replacement in replacements:
        assert hasattr(replacement.owner, replacement.name), f"torch lost {replacement.name}: {replacement.reason}"
        before = getattr(replacement.owner, replacement.name)
        setattr(replacement.owner, replacement.name, replacement.make(before))


def _left_to_us(replacements: tuple[Replacement, ...]) -> tuple[Replacement, ...]:
    """Those whose names nobody has replaced for NPUs already: transfer_to_npu, by itself or in MindSpeed."""
    theirs = [each for each in replacements if _is_replaced(getattr(each.owner, each.name, None))]
    if theirs:
        told = ", ".join(each.name for each in theirs)
        print(f"torch_npu's transfer_to_npu or MindSpeed is active: their replacements stay ({told})", file=sys.stderr)
    return tuple(each for each in replacements if each not in theirs)


def _is_replaced(value: Any) -> bool:
    # A decorated function says that it is of torch's module; where it was written its globals say.
    module = getattr(value, "__globals__", {}).get("__name__") or getattr(value, "__module__", None) or ""
    return module.partition(".")[0] in ("torch_npu", "mindspeed")


def _returning(value: Any) -> Callable[[Any], Any]:
    return lambda _before: lambda *_, **__: value


def _placed_on(device_type: str) -> Callable[[Callable], Callable]:
    """The factory with device="cuda" read as another device."""

    def replaced(function: Callable) -> Callable:
        @functools.wraps(function)
        def wrapped(*arguments, **keywords):
            device = keywords.get("device")
            if device is not None and not isinstance(device, int) and torch.device(device).type == "cuda":
                index = torch.device(device).index
                keywords["device"] = CPU if device_type == "cpu" else torch.device(device_type, index)
            return function(*arguments, **keywords)

        return wrapped

    return replaced


def _cuda_type_name(prefix: str) -> Callable[[Callable], Callable]:
    """Tensor.type() naming the device's tensors (torch.*Tensor, torch.npu.*Tensor) as megatron's optimizers expect."""

    def replaced(function: Callable) -> Callable:
        def named(tensor, *arguments, **keywords):
            answer = function(tensor, *arguments, **keywords)
            if isinstance(answer, str) and answer.startswith(prefix) and not answer.startswith("torch.cuda."):
                # "torch.meta.FloatTensor" are the tensors of a rehearsal (rehearsal.py).
                return answer.replace(prefix, "torch.cuda.", 1).replace(".meta.", ".")
            return answer

        return named

    return replaced


def _in_place_alone(collective: Callable) -> Callable:
    """The collective, done at once where a group has one rank and the result already lies where it shall."""

    @functools.wraps(collective)
    def wrapped(output, given, *arguments, **keywords):
        group = keywords.get("group")
        lies_there = output.numel() == given.numel() and output.data_ptr() == given.data_ptr()
        if lies_there and not keywords.get("async_op") and distributed.get_world_size(group) == 1:
            return None
        return collective(output, given, *arguments, **keywords)

    return wrapped


def _own(name: str) -> Callable[[Any], Any]:
    """torch_npu's own function of that name."""
    return lambda _before: lambda *arguments, **keywords: getattr(torch.npu, name)(*arguments, **keywords)


def _current_npu() -> torch.device:
    """A device, not its number: torch reads a bare number as its one accelerator, whichever that is."""
    return torch.device("npu", torch.npu.current_device())


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
    Replacement(torch, "tensor", 'device="cuda" in schedules and optimizers', _placed_on("cpu")),
    Replacement(torch, "zeros", 'device="cuda" in schedules and optimizers', _placed_on("cpu")),
    Replacement(torch, "ones", 'device="cuda" in checkpointing', _placed_on("cpu")),
    Replacement(torch, "empty", 'device="cuda" in p2p_communication.py', _placed_on("cpu")),
    Replacement(torch, "empty_like", 'device="cuda" in checkpointing', _placed_on("cpu")),
    Replacement(distributed, "reduce_scatter_tensor", "gloo alone copies a bucket, twice", _in_place_alone),
    Replacement(distributed, "all_gather_into_tensor", "gloo alone copies a bucket, twice", _in_place_alone),
    Replacement(torch.Tensor, "cuda", "checkpoint exchange", lambda _: lambda tensor, *_, **__: tensor),
    Replacement(torch.Tensor, "type", "optimizers compare it with 'torch.cuda.*Tensor'", _cuda_type_name("torch.")),
)


NPU_REPLACEMENTS: tuple[Replacement, ...] = (
    Replacement(torch.cuda, "current_device", "every allocation in megatron names it", lambda _: _current_npu),
    Replacement(torch.cuda, "device_count", "checkpoint writer", _own("device_count")),
    Replacement(torch.cuda, "synchronize", "p2p_communication.py, checkpoint writer", _own("synchronize")),
    Replacement(torch.cuda, "set_device", "async checkpoint worker", _own("set_device")),
    Replacement(torch.cuda, "empty_cache", "optimizer loading", _own("empty_cache")),
    Replacement(torch.cuda, "_lazy_call", "random.py, bound at import", lambda _: lambda function, **__: function()),
    Replacement(torch.cuda, "Stream", "distributed_data_parallel.py", lambda _: torch.npu.Stream),
    Replacement(torch.cuda, "Event", "overlap of reduction", lambda _: torch.npu.Event),
    Replacement(torch.cuda, "current_stream", "param_and_grad_buffer.py", _own("current_stream")),
    Replacement(torch.cuda, "default_stream", "param_and_grad_buffer.py", _own("default_stream")),
    Replacement(torch.cuda, "stream", "context of a stream", _own("stream")),
    Replacement(torch.cuda.nvtx, "range_push", "utils.py ranges; msprof has its own", _returning(None)),
    Replacement(torch.cuda.nvtx, "range_pop", "utils.py ranges; msprof has its own", _returning(None)),
    Replacement(torch.cuda, "get_rng_state", "random.py", lambda _: lambda *_, **__: torch.npu.get_rng_state()),
    Replacement(torch.cuda.random, "get_rng_state", "random.py", lambda _: lambda *_, **__: torch.npu.get_rng_state()),
    Replacement(torch.cuda, "set_rng_state", "random.py", lambda _: lambda state, *_: torch.npu.set_rng_state(state)),
    Replacement(torch.cuda, "manual_seed", "random.py", _own("manual_seed")),
    Replacement(torch.cuda, "default_generators", "random.py indexes it", lambda _: NpuGenerators()),
    Replacement(torch, "tensor", 'device="cuda" in schedules and optimizers', _placed_on("npu")),
    Replacement(torch, "zeros", 'device="cuda" in schedules and optimizers', _placed_on("npu")),
    Replacement(torch, "ones", 'device="cuda" in checkpointing', _placed_on("npu")),
    Replacement(torch, "empty", 'device="cuda" in p2p_communication.py', _placed_on("npu")),
    Replacement(torch, "empty_like", 'device="cuda" in checkpointing', _placed_on("npu")),
    Replacement(torch.Tensor, "cuda", "checkpoint exchange", lambda _: lambda tensor, *_, **__: tensor.to("npu")),
    Replacement(torch.Tensor, "type", "optimizers compare it", _cuda_type_name("torch.npu.")),
)
"""The same names on an NPU: torch_npu's own of that name, looked up when asked, since torch_npu may not be there."""
