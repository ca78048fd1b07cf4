"""A rank's trace, as torch's profiler wrote it, read back: what every moment of a step was spent on. Imports no torch.

The host's threads are walked once, as nested calls: each moment has an innermost call, the part around it (ranges of
engine/profile.py, or, in backward, the part that the forward operation of the same sequence number ran in), and whether
something was computed. On a GPU the device's own timeline takes the host's place: a kernel has the part in which it was
launched. What is sent lies beside: gloo's threads, or NCCL's kernels. While the executing line computes, sending is
hidden; the rest is exposed, or, waiting for a pipeline's neighbour, a bubble.
"""

import gzip
import json
import re
import zlib
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

Event = dict[str, Any]

COMPUTING = ("aten::", "contentv::", "contentv_native::")
SENDING = ("gloo:", "nccl:")
TO_A_NEIGHBOUR = ("send", "recv", "Send", "Recv")
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
MICRO = 1e-6

PART = re.compile(r"data|noise|embed|block \d+( attention| mlp| norm)?|head|loss|reduce|optimizer|checkpoint")
"""The vocabulary of engine/profile.py; torch has annotations of its own, which are inside of these."""
EXPOSED, BUBBLE, OTHER = "exposed communication", "pipeline bubble", "other"
"""Beside the parts of engine/profile.py: waiting for others, and everything that no range names."""


class Span(NamedTuple):
    """A stretch of the executing line, in microseconds of the trace's clock."""

    start: float
    end: float
    part: str
    is_backward: bool
    computes: bool


class Call(NamedTuple):
    """One outermost operation on tensors."""

    start: float
    end: float
    part: str
    is_backward: bool
    name: str
    shapes: str
    """JSON: sizes and types of its tensors."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """All calls of one operation with the same shapes, in all profiled steps."""

    name: str
    shapes: str
    calls: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RankProfile:
    """What one rank's trace says; seconds are those of an average profiled step."""

    rank: int
    world: int
    device: str
    roles: dict[str, int]
    precision: str
    steps: list[int]
    """The profiled ones, but for the first where there are several."""
    seconds: float
    forward: dict[str, float]
    """Part -> seconds; parts of blocks are added up over blocks."""
    backward: dict[str, float]
    blocks: dict[int, float]
    """Block -> seconds in forward and backward."""
    hidden: float
    """Sending behind computation: beside the others, not one of them."""
    operations: list[Operation]
    """The slowest first."""
    memory: list[tuple[float, float]]
    """(seconds since the first step began, MiB allocated)."""
    starts: list[float]
    """Of each step, in the seconds of `memory`."""


def read_trace(path: Path) -> RankProfile:
    """Raises ValueError for a file that is no trace of ours, in whatever way."""
    try:
        with gzip.open(path) as file:
            return _read(json.load(file))
    except (OSError, EOFError, zlib.error, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        said = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{path} is no trace that a profiled run left ({said}): remove it, or profile again"
        ) from error


def _read(trace: dict[str, Any]) -> RankProfile:
    facts, events = trace["contentv"], [event for event in trace["traceEvents"] if "ts" in event]
    steps = sorted(
        (event["ts"], event["ts"] + event["dur"], int(event["name"].split()[1]), event["tid"])
        for event in events
        if event.get("cat") == "user_annotation" and event["name"].startswith("step ")
    )
    if not steps:
        raise ValueError("it holds no whole step")
    # The first one also sets the profiler's own buffers up, which takes longer than some steps.
    steps = steps[1:] or steps
    host = Host(events, main=steps[0][3])
    device = [event for event in events if event.get("cat") in ON_DEVICE]
    line = list(_device_line(device, events, host)) if device else host.spans
    sent = [event for event in (device or events) if _is_sent(event)]
    windows = [(start, end) for start, end, *_ in steps]
    return RankProfile(
        rank=facts["rank"],
        world=facts["world"],
        device=facts["device"],
        roles=facts["roles"],
        precision=facts["precision"],
        steps=[number for _, _, number, _ in steps],
        **_shares(line, sent, windows),
        operations=_operations(host.calls if not device else _launched(device, events, host), windows),
        memory=_memory(events, windows, on_device=bool(device)),
        starts=[(start - windows[0][0]) * MICRO for start, _ in windows],
    )


@dataclass
class _Frame:
    end: float
    part: str
    is_backward: bool
    computes: bool
    event: Event


class Host:
    """The nested calls of a process's threads: spans of the main one, and the outermost operations of all."""

    def __init__(self, events: list[Event], main: int):
        self.spans: list[Span] = []
        self.calls: list[Call] = []
        self.main = main
        self._part_of: dict[tuple[int, int], tuple[str, bool]] = {}
        self._threads: dict[int, int] = {}
        by_thread = defaultdict(list)
        for event in events:
            if event.get("ph") == "X" and event.get("cat") in ("cpu_op", "user_annotation") and not _is_sent(event):
                by_thread[event["tid"]].append(event)
        # Backward's thread looks up what the main one did.
        for thread in sorted(by_thread, key=lambda each: each != main):
            spans = self._walk(by_thread[thread], thread)
            if thread == main:
                self.spans = spans
        self.calls.sort()

    def at(self, moment: float) -> Call | None:
        """The operation that ran, in whichever thread, at that moment."""
        index = bisect_right(self.calls, (moment,)) - 1
        # Threads overlap little: the one that launches is among the last that began.
        for call in reversed(self.calls[max(0, index - 4) : index + 1]):
            if call.start <= moment <= call.end:
                return call
        return None

    def _walk(self, events: list[Event], thread: int) -> list[Span]:
        spans: list[Span] = []
        stack: list[_Frame] = []
        now = 0.0

        def until(moment: float) -> None:
            nonlocal now
            if stack and moment > now:
                top = stack[-1]
                spans.append(Span(now, moment, top.part, top.is_backward, top.computes))
            now = max(now, moment)

        for event in sorted(events, key=lambda each: (each["ts"], -each["dur"])):
            while stack and stack[-1].end <= event["ts"]:
                until(stack[-1].end)
                stack.pop()
            until(event["ts"])
            frame = self._frame(event, stack[-1] if stack else None, thread)
            if frame.computes and not (stack and stack[-1].computes):
                self.calls.append(
                    Call(event["ts"], frame.end, frame.part, frame.is_backward, event["name"], _shapes(event))
                )
            stack.append(frame)
        while stack:
            until(stack[-1].end)
            stack.pop()
        return spans

    def _frame(self, event: Event, outer: _Frame | None, thread: int) -> _Frame:
        name, arguments = event["name"], event.get("args", {})
        part, is_backward = (outer.part, outer.is_backward) if outer else (OTHER, False)
        number, origin = arguments.get("Sequence number", -1), arguments.get("Fwd thread id", 0)
        if event["cat"] == "user_annotation":
            part = name if PART.fullmatch(name) else OTHER if name.startswith("step ") else part
        elif origin and number >= 0:
            forward_thread = self._threads.setdefault(origin, self.main if not self._threads else thread)
            part, is_backward = self._part_of.get((forward_thread, number), (part, False))[0], True
        elif name.startswith("autograd::engine::evaluate_function"):
            is_backward = True  # of a leaf: its gradient is added up where the last part's was made
        elif number >= 0:
            # The last operation that saw this number is the one that autograd gave it to.
            self._part_of[thread, number] = part, is_backward
        computes = name.startswith(COMPUTING) or bool(outer and outer.computes)
        return _Frame(event["ts"] + event["dur"], part, is_backward, computes, event)


def _device_line(device: list[Event], events: list[Event], host: Host) -> Iterator[Span]:
    """The device's time: kernels that compute, one after another, and between them nothing."""
    launches = _launches(events)
    now = 0.0
    for event in sorted(device, key=lambda each: each["ts"]):
        if _is_sent(event):
            continue
        call = host.at(launches.get(event.get("args", {}).get("correlation"), -1.0))
        start, end = max(event["ts"], now), event["ts"] + event["dur"]
        if start > now > 0:
            yield Span(now, start, OTHER, False, False)
        if end > start:
            yield Span(start, end, call.part if call else OTHER, bool(call and call.is_backward), True)
        now = max(now, end)


def _launched(device: list[Event], events: list[Event], host: Host) -> Iterator[Call]:
    """Operations by the time of their kernels."""
    launches = _launches(events)
    for event in device:
        call = host.at(launches.get(event.get("args", {}).get("correlation"), -1.0))
        if call and not _is_sent(event):
            yield call._replace(start=event["ts"], end=event["ts"] + event["dur"])


def _launches(events: list[Event]) -> dict[int, float]:
    """Correlation -> when the host launched it."""
    return {
        event["args"]["correlation"]: event["ts"]
        for event in events
        if event.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in event.get("args", {})
    }


def _is_sent(event: Event) -> bool:
    name = event["name"]
    if event.get("cat") in ON_DEVICE:
        return name.startswith(("ncclDevKernel", "ncclKernel"))
    return event.get("cat") == "user_annotation" and name.startswith(SENDING)


@dataclass
class _Sums:
    forward: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    backward: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    blocks: dict[int, float] = field(default_factory=lambda: defaultdict(float))


def _shares(line: list[Span], sent: list[Event], windows: list[tuple[float, float]]) -> dict[str, Any]:
    """The executing line cut into parts and waiting, a step's average."""
    per_step = MICRO / len(windows)
    sums = _Sums()
    everything = Intervals((event["ts"], event["ts"] + event["dur"]) for event in sent)
    neighbours = Intervals(
        (event["ts"], event["ts"] + event["dur"])
        for event in sent
        if any(word in event["name"] for word in TO_A_NEIGHBOUR)
    )
    waited = 0.0
    for begin, until in windows:
        for span in line:
            start, end = max(span.start, begin), min(span.end, until)
            if end <= start:
                continue
            left = end - start
            if not span.computes and span.part != "data":
                waiting = everything.overlap(start, end)
                # A ring passes keys on inside a block; what waits outside of one waits for another stage.
                bubble = 0.0 if span.part.startswith("block") else min(waiting, neighbours.overlap(start, end))
                sums.forward[BUBBLE] += bubble * per_step
                sums.forward[EXPOSED] += (waiting - bubble) * per_step
                waited += waiting * per_step
                left -= waiting
            _add(sums, span, left * per_step)
    seconds = sum(until - begin for begin, until in windows) * per_step
    known = sum(sums.forward.values()) + sum(sums.backward.values())
    sums.forward[OTHER] += max(0.0, seconds - known)
    total_sent = sum(everything.overlap(begin, until) for begin, until in windows) * per_step
    return {
        "seconds": seconds,
        "forward": dict(sums.forward),
        "backward": dict(sums.backward),
        "blocks": dict(sorted(sums.blocks.items())),
        "hidden": max(0.0, total_sent - waited),
    }


def _add(sums: _Sums, span: Span, seconds: float) -> None:
    part = span.part
    if part.startswith("block "):
        _, number, *what = part.split()
        sums.blocks[int(number)] += seconds
        part = what[0] if what else "block"
    (sums.backward if span.is_backward else sums.forward)[part] += seconds


class Intervals:
    """Stretches of time, joined where they overlap."""

    def __init__(self, pairs: Iterable[tuple[float, float]]):
        self.starts: list[float] = []
        self.ends: list[float] = []
        for start, end in sorted(pairs):
            if self.ends and start <= self.ends[-1]:
                self.ends[-1] = max(self.ends[-1], end)
            else:
                self.starts.append(start)
                self.ends.append(end)

    def overlap(self, start: float, end: float) -> float:
        """How much of [start, end) they cover."""
        covered = 0.0
        for index in range(max(0, bisect_right(self.starts, start) - 1), len(self.starts)):
            if self.starts[index] >= end:
                break
            covered += max(0.0, min(end, self.ends[index]) - max(start, self.starts[index]))
        return covered


def _operations(calls: Iterable[Call], windows: list[tuple[float, float]]) -> list[Operation]:
    seconds, count = defaultdict(float), defaultdict(int)
    for call in calls:
        if not windows[0][0] <= call.start < windows[-1][1]:
            continue
        seconds[call.name, call.shapes] += (call.end - call.start) * MICRO
        count[call.name, call.shapes] += 1
    slowest = sorted(seconds, key=seconds.get, reverse=True)
    return [Operation(name=key[0], shapes=key[1], calls=count[key], seconds=seconds[key]) for key in slowest]


def _shapes(event: Event) -> str:
    arguments = event.get("args", {})
    return json.dumps([arguments.get("Input Dims", []), arguments.get("Input type", [])])


def _memory(events: list[Event], windows: list[tuple[float, float]], *, on_device: bool) -> list[tuple[float, float]]:
    origin, last = windows[0][0], windows[-1][1]
    kinds = (1, 20) if on_device else (0,)  # torch's numbers: CUDA, and what third parties bring; 0 is the CPU
    points = [
        ((event["ts"] - origin) * MICRO, event["args"]["Total Allocated"] / 2**20)
        for event in events
        if event["name"] == "[memory]" and event["args"]["Device Type"] in kinds and origin <= event["ts"] <= last
    ]
    return sorted(points)
