"""How fast each backend of each operation is, against the others and against what the device can do at best.

All backends of an operation take turns in one process on the same inputs, so that their ratios hold on a machine that
is busy with other things. What the device can do is measured in the same run: the bandwidth of a large copy and the
rate of a large matrix product. The bytes and operations of a call are the least it can do (`cost` in
kernels/<op>/cases.py); the larger of the two times these take is the floor, and a share of the roofline is
floor / median.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from ..kernels import registry
from ..kernels.case import Case, Cost
from ..kernels.device import is_accelerator, last_cache_bytes, seconds_between, wait_for
from ..kernels.joint_attention.rotation import rotate_before
from ..kernels.ranks import OPERATIONS
from ..kernels.registry import TABLE

KERNELS = registry.__name__.rpartition(".")[0]
COMPILED = "inductor"
"""The rival that every machine has: torch.compile of the reference."""
FLEX = "flex_attention"
"""Attention's rival on CUDA, the only device for which torch has its backward; compiled, without mask."""
_ROUNDS = 5
_QUEUED = 10
_PAUSE = 0.01
"""Seconds: ten calls through the dispatcher and autograd take the host less."""
_CACHES = 4
"""Inputs rotate through at least so many times the device's last cache: a kernel must fetch what it reads."""


@dataclass(frozen=True, kw_only=True)
class KernelBenchmark:
    """What is measured."""

    ops: tuple[str, ...] = OPERATIONS
    shapes: str = "model"
    """model: those the model passes, the 8B model's on an accelerator; odd: sizes that no tile divides."""
    device: torch.device
    dtype: torch.dtype
    cases: tuple[str, ...] = ()
    """Only those whose name holds one of these."""
    seconds: float = 0.2
    """For each backend, case and direction, after a first call."""
    backends: tuple[str, ...] = ()
    """Only these; none: every one that can run here, and torch.compile of the reference."""


@dataclass(frozen=True, kw_only=True)
class Roof:
    """What the device did at best in this run."""

    copy_gbs: float
    """10^9 bytes a second of a large copy, read and written counted."""
    product_tflops: float
    """10^12 operations a second of a large matrix product in the dtype measured."""

    def floor_ms(self, bytes_moved: float, flops: float) -> float:
        return 1e3 * max(bytes_moved / (1e9 * self.copy_gbs), flops / (1e12 * self.product_tflops))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One backend, case and direction; times None where the backend refused, with its reason."""

    op: str
    case: str
    direction: str
    backend: str
    dtype: str
    ms: float | None = None
    spread: float | None = None
    """Distance of the quartiles over the median."""
    gbytes: float = 0.0
    gflops: float = 0.0
    gbs: float | None = None
    tflops: float | None = None
    roofline: float | None = None
    """Share of what the device can do: floor / median."""
    bound: str = ""
    """Which roof it is: memory or products."""
    against_best: float | None = None
    """Median over the fastest backend's of this case and direction: 1 is the fastest."""
    refused: str | None = None


def measure_roof(device: torch.device, dtype: torch.dtype) -> Roof:
    """Large enough to leave every cache, and long enough for clocks to settle."""
    is_cpu = device.type == "cpu"
    source = torch.randn(2**25 if is_cpu else 2**29, device=device)
    target = torch.empty_like(source)
    copy = min(_times(lambda: target.copy_(source), device, seconds=0.5))
    side = 2048 if is_cpu else 8192
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product = min(_times(lambda: left @ right, device, seconds=0.5))
    return Roof(copy_gbs=2 * source.nbytes / copy / 1e9, product_tflops=2 * side**3 / product / 1e12)


def measure_kernels(wanted: KernelBenchmark, roof: Roof) -> Iterator[Row]:
    """Rows as they come, those of one case together."""
    for op in wanted.ops:
        book = import_module(f"{KERNELS}.{op}.cases")
        for case in book.CASES:
            if _is_wanted(case, wanted):
                yield from measure_case(op, book, case, wanted, roof)


def _is_wanted(case: Case, wanted: KernelBenchmark) -> bool:
    if wanted.cases and not any(part in case.name for part in wanted.cases):
        return False
    if wanted.shapes == "odd":
        return case.name.startswith("odd")
    if case.name.startswith(("odd", "single")):
        return False
    return not case.large if wanted.device.type == "cpu" else case.large or ", text" in case.name


@dataclass(frozen=True)
class _Calls:
    """One backend on some sets of inputs, called in turns."""

    forward: Callable[[], object]
    backward: Callable[[], object] | None


def measure_case(op: str, book, case: Case, wanted: KernelBenchmark, roof: Roof) -> Iterator[Row]:
    """Rows of one case, its own or another; `book`: the module kernels.<op>.cases."""
    cost: Cost = book.cost(case, wanted.dtype)
    sets = [
        book.inputs(case, dtype=wanted.dtype, device=str(wanted.device), seed=seed)
        for seed in range(_sets(cost, wanted.device))
    ]
    torch.compiler.reset()  # of the rival: it gives up after eight cases
    calls: dict[str, _Calls] = {}
    for name in wanted.backends:
        if (op, name) in TABLE and (reason := TABLE[op, name].refuses(wanted.device.type, wanted.dtype)):
            yield Row(op=op, case=case.name, direction="forward", backend=name, dtype=str(wanted.dtype), refused=reason)
    for name, load in _candidates(op, wanted).items():
        try:
            calls[name] = _prepare(load(), sets)
        except Exception as error:  # a rival's library may raise anything; the others are measured all the same
            yield Row(op=op, case=case.name, direction="forward", backend=name, dtype=str(wanted.dtype),
                      refused=f"{type(error).__name__}: {str(error).strip()[:200]}")  # fmt: skip
    work = {"forward": (cost.forward_bytes, cost.forward_flops), "backward": (cost.backward_bytes, cost.backward_flops)}
    for direction, (moved, flops) in work.items():
        timed = {name: getattr(each, direction) for name, each in calls.items()}
        seconds = _in_turns({name: call for name, call in timed.items() if call}, wanted)
        best = min((statistics.median(each) for each in seconds.values()), default=math.nan)
        for name, each in seconds.items():
            measured = _figures(each, moved, flops, roof)
            yield Row(op=op, case=case.name, direction=direction, backend=name, dtype=str(wanted.dtype),
                      against_best=statistics.median(each) / best, **measured)  # fmt: skip


def _figures(seconds: list[float], moved: float, flops: float, roof: Roof) -> dict[str, float | str]:
    """A row's figures, from the seconds of its calls and what each call must do."""
    median = statistics.median(seconds)
    quartiles = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else (median, median, median)
    floor = roof.floor_ms(moved, flops)
    return {
        "ms": 1e3 * median,
        "spread": (quartiles[2] - quartiles[0]) / median,
        "gbytes": moved / 1e9,
        "gflops": flops / 1e9,
        "gbs": moved / median / 1e9,
        "tflops": flops / median / 1e12,
        "roofline": floor / (1e3 * median),
        "bound": "memory" if floor == roof.floor_ms(moved, 0) else "products",
    }


def _candidates(op: str, wanted: KernelBenchmark) -> dict[str, Callable[[], Callable]]:
    there = {
        name: backend.load
        for (each, name), backend in TABLE.items()
        if each == op and backend.refuses(wanted.device.type, wanted.dtype) is None
    }
    # An optimizer's lists are no graph worth compiling anew for every case, and attention's loop over blocks unrolls.
    if op not in ("adamw", "gradient_norm", "joint_attention"):
        there[COMPILED] = lambda: torch.compile(TABLE[op, "reference"].load(), dynamic=False)
    if op == "joint_attention" and "gpu_triton" in there:
        there[FLEX] = lambda: flex(torch.compile(flex_attention, dynamic=False))
    return {name: load for name, load in there.items() if not wanted.backends or name in wanted.backends}


def flex(attention: Callable[..., Tensor]) -> Callable:
    """torch's FlexAttention under joint_attention's contract, without the log-sum-exp."""

    def attend(q_BHQE: Tensor, k_BHJE: Tensor, v_BHJE: Tensor, *, scale: float, rotation=None) -> Tensor:
        if rotation is not None:
            q_BHQE, k_BHJE = rotate_before(q_BHQE, k_BHJE, rotation)
        return attention(q_BHQE, k_BHJE, v_BHJE, scale=scale)

    return attend


def _prepare(function: Callable, sets: list[dict]) -> _Calls:
    """Calls that take the sets in turn; the first of each is made here, so that nothing is compiled while timed."""
    graphs = []
    for arguments in sets:
        leaves = {
            name: value.detach().requires_grad_()
            for name, value in arguments.items()
            if isinstance(value, Tensor) and value.is_floating_point()
        }
        returned = function(**(arguments | leaves))
        returned = returned if isinstance(returned, tuple) else (returned,)
        # Attention's second result, the log-sum-exp, is used by a ring alone: no gradient comes through it here.
        outputs = tuple(
            each for each in returned if each is not None and each.requires_grad and each.dim() >= returned[0].dim()
        )
        if not outputs:
            continue
        cotangents = [torch.randn_like(output) for output in outputs]
        gradients = torch.autograd.grad(outputs, leaves.values(), cotangents, retain_graph=True, allow_unused=True)
        reached = [leaf for leaf, each in zip(leaves.values(), gradients, strict=True) if each is not None]
        graphs.append((outputs, reached, cotangents))
    forwards, backwards = _endless(sets), _endless(graphs)

    def backward():
        outputs, leaves, cotangents = next(backwards)
        return torch.autograd.grad(outputs, leaves, cotangents, retain_graph=True)

    calls = _Calls(lambda: function(**next(forwards)), backward if graphs else None)
    calls.forward()
    return calls


def _endless(items: list) -> Iterator:
    while items:
        yield from items


def _sets(cost: Cost, device: torch.device) -> int:
    cache = last_cache_bytes(device)
    return max(1, min(8, math.ceil(_CACHES * cache / max(cost.forward_bytes, 1))))


def _in_turns(calls: dict[str, Callable], wanted: KernelBenchmark) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(_ROUNDS):
        for name, call in calls.items():
            seconds[name] += _times(call, wanted.device, wanted.seconds / _ROUNDS)
    return seconds


def _times(call: Callable, device: torch.device, seconds: float) -> list[float]:
    """Seconds of calls for about so long, at least one; the first is left out where there is time for a second."""
    measure = _queued if is_accelerator(device) else _waited
    started = time.perf_counter()
    times = measure(call, device)
    while time.perf_counter() - started < seconds:
        times += measure(call, device)
    return times[1:] or times


def _waited(call: Callable, device: torch.device) -> list[float]:
    started = time.perf_counter()
    call()
    wait_for(device)
    return [time.perf_counter() - started]


def _queued(call: Callable, device: torch.device) -> list[float]:
    """Several calls behind a pause long enough for the host to queue them all: its own time is in none of them.

    A call that takes longer than the pause is timed alone.
    """
    alone = seconds_between([call], device)
    if alone[0] > _PAUSE:
        return alone
    return seconds_between([call] * _QUEUED, device, pause=_PAUSE)
