"""Who holds everybody up: every rank tells where it is, and a world in which a rank died or hangs ends, with its name.

Once a second a thread of each rank publishes its step, phase and place in the code (parallel/sighting.py); the training
loop itself only sets two attributes. On rank 0 the thread also gathers what all published, for whoever listens. A rank
that makes no progress for as long as is configured reads what all others published last, says which of them is silent
or not in the collective that the rest waits in, and ends its process. A collective that fails at once, because a peer
is gone, is told the same way.
"""

import json
import linecache
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from types import FrameType, TracebackType
from typing import Any

from torch.distributed import distributed_c10d

from .sighting import PERIOD, SILENT, Sighting, slow_ranks

SAMPLE = 0.1
"""Seconds between two looks at where this rank is; they cost it 20 microseconds each."""

WINDOW = 300
"""Looks over which the share of computing is taken: half a minute."""

TOLD_EVERY = 5
"""Publications between two calls of the listener."""

DEEPEST = 12
"""Innermost calls of a stack that are told."""

LOST = 1
"""Exit status of a rank that ends because of another."""

COMMUNICATION = (
    "torch/distributed/distributed_c10d.py",
    "megatron/core/pipeline_parallel/p2p_communication.py",
    "megatron/core/distributed/param_and_grad_buffer.py",
)
"""Files whose functions, when they are innermost, mean that a rank waits for others."""


class RankLostError(RuntimeError):
    """Another rank died or hangs; the message names it."""


class Watch:
    """One rank's view of all. Use as a context manager around the training loop; `at` is the loop's part."""

    def __init__(self, *, limit: float, rank: int, world: int):
        """`limit`: seconds without progress after which the run ends."""
        self.limit, self.rank, self.world = limit, rank, world
        self.step, self.phase = 0, "start"
        self._moved = time.monotonic()
        self._ended = threading.Event()
        self._store: Any = None
        self._listener: Callable[[list[Sighting]], None] | None = None
        self._computing: deque[bool] = deque(maxlen=WINDOW)
        self._collective = ""
        self._slow: list[str] = []

    def at(self, step: int, phase: str) -> None:
        """The loop has come here."""
        self.step, self.phase = step, phase
        self._moved = time.monotonic()

    @contextmanager
    def watching(self, listener: Callable[[list[Sighting]], None] | None = None) -> Iterator["Watch"]:
        """Publishes and looks until the block ends. A failed collective in it becomes a RankLostError.

        `listener` is called on rank 0 alone, every few seconds, with what all ranks published last.
        """
        self._listener = listener if self.rank == 0 else None
        if self.world > 1:
            # A connection of its own: the main thread may hold the shared one for minutes, waiting for a rank that is
            # gone.
            self._store = distributed_c10d._get_default_store().clone()
        elif self._listener is None:
            yield self
            return
        self._publish()
        thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        thread.start()
        try:
            yield self
        except RuntimeError as error:
            failed = _failed(error.__traceback__)
            if failed is None:
                raise
            time.sleep(SILENT + PERIOD)  # until the one that died is known by its silence
            raise RankLostError(f"{self.report(failed)} ({_first_line(error)})") from error
        finally:
            self._ended.set()
            thread.join(timeout=PERIOD)

    def report(self, failed: str | None = None) -> str:
        """One line: where this rank is, or which collective `failed`, and which others hold it up."""
        now = time.time()
        own = self._sighting()
        others = self._others()
        unknown = sorted(set(range(self.world)) - {seen.rank for seen in others} - {self.rank})
        silent = [seen for seen in others if now - seen.published > SILENT]
        behind = [seen for seen in others if seen.step < own.step]
        computing = [seen for seen in others if not seen.waits]
        culprits = silent or behind or computing
        told = [seen.describe(now) for seen in culprits] + [f"rank {rank} never reported" for rank in unknown]
        return (
            f"step {own.step}, {own.phase}: rank {self.rank} "
            + (f"failed in {failed}; " if failed else f"{'waits' if own.waits else 'is'} in {own.place}; ")
            + ("; ".join(told) or "every other rank reports and waits as well")
        )

    def _watch(self) -> None:
        published = 0
        while self._looked_around():
            try:
                self._publish()
                if self._listener and published % TOLD_EVERY == 0:
                    self._tell_listener()
                published += 1
                if self.world == 1 or time.monotonic() - self._moved <= self.limit:
                    continue
                told = self.report()
            except (RuntimeError, OSError) as error:
                # The store is rank 0's. While the main thread still computes it will notice by itself.
                if time.monotonic() - self._moved <= self.limit:
                    continue
                told = f"step {self.step}, {self.phase}: rank 0 does not answer ({_first_line(error)})"
            if self._ended.is_set():
                return
            print(f"error: no progress for {self.limit:g} s at {told}", file=sys.stderr, flush=True)
            # Not an exception: the main thread is inside a collective that no exception reaches.
            os._exit(LOST)

    def _looked_around(self) -> bool:
        """Samples where this rank is for one period; False once the watch has ended."""
        for _ in range(round(PERIOD / SAMPLE)):
            if self._ended.wait(SAMPLE):
                return False
            self._look()
        return True

    def _look(self) -> None:
        place, waits = _place()
        self._computing.append(not waits)
        if waits:
            self._collective = place

    def _tell_listener(self) -> None:
        sightings = [self._sighting(), *self._others()]
        try:
            self._listener(sightings)
        except OSError as error:
            # A full disk must not end a run that does not write yet.
            print(f"warning: heartbeats could not be written ({error})", file=sys.stderr, flush=True)
        slow = slow_ranks(sightings)
        ranks = [line.split(" computes ")[0] for line in slow]
        if ranks and ranks != self._slow:
            print(f"warning: slow: {'; '.join(slow)}", file=sys.stderr, flush=True)
        self._slow = ranks

    def _publish(self) -> None:
        if self._store is not None:
            self._store.set(_key(self.rank), json.dumps(asdict(self._sighting())))

    def _others(self) -> list[Sighting]:
        """What every other rank published last; one that never did is left out."""
        ranks = [rank for rank in range(self.world) if rank != self.rank]
        keys = [_key(rank) for rank in ranks]
        try:
            # Two questions for all ranks, not two for each; once all have published.
            if keys and self._store.check(keys):
                return [Sighting(**json.loads(value)) for value in self._store.multi_get(keys)]
        except (RuntimeError, OSError):
            pass
        return [seen for rank in ranks if (seen := self._read(rank))]

    def _read(self, rank: int) -> Sighting | None:
        try:
            if not self._store.check([_key(rank)]):
                return None
            return Sighting(**json.loads(self._store.get(_key(rank))))
        except (RuntimeError, OSError):
            return None

    def _sighting(self) -> Sighting:
        place, waits = _place()
        full = len(self._computing) == WINDOW
        return Sighting(
            rank=self.rank,
            step=self.step,
            phase=self.phase,
            place=place,
            waits=waits,
            published=time.time(),
            computing=round(sum(self._computing) / WINDOW, 3) if full else None,
            collective=self._collective,
            stack=_stack() if time.monotonic() - self._moved > SILENT else "",
            host=socket.gethostname(),
            process=os.getpid(),
        )


def _place() -> tuple[str, bool]:
    """Where this process is, the watch aside, and whether it waits there for others."""
    places = {}
    for ident, frame in sys._current_frames().items():
        while frame is not None and frame.f_code.co_filename == __file__:
            frame = frame.f_back
        if frame is not None:
            places[ident] = _communication(frame) or _handle(frame, frame.f_lineno), frame
    # Backward runs in threads of autograd's on an accelerator: any that communicates speaks for the rank.
    for waits_in, _ in places.values():
        if waits_in:
            return waits_in, True
    _, frame = places.get(threading.main_thread().ident, (None, None))
    return _function(frame) if frame else "nothing", False


def _stack() -> str:
    """The main thread's innermost calls, `file.py:function:line < its caller`, in one line."""
    frame, calls = sys._current_frames().get(threading.main_thread().ident), []
    while frame is not None and len(calls) < DEEPEST:
        calls.append(f"{_function(frame)}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(calls)


def _communication(frame: FrameType | None) -> str | None:
    """The outermost communication function around a thread's innermost frame; None if that computes."""
    name = None
    while frame is not None and frame.f_code.co_filename.endswith((*COMMUNICATION, "torch/distributed/c10d_logger.py")):
        if frame.f_code.co_filename.endswith(COMMUNICATION):
            name = frame.f_code.co_name
        frame = frame.f_back
    return name


def _handle(frame: FrameType, number: int) -> str | None:
    """Where a collective that was started earlier is waited for: its handle's method has no frame of its own."""
    line = linecache.getline(frame.f_code.co_filename, number)
    return f"{_function(frame)}, for a collective it had started" if ".wait()" in line else None


def _function(frame: FrameType) -> str:
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_code.co_name}"


def _failed(traceback: TracebackType | None) -> str | None:
    """The communication function, or the wait for a collective, that an error came out of; None if from elsewhere."""
    innermost = None
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename.endswith(COMMUNICATION):
            return traceback.tb_frame.f_code.co_name
        innermost, traceback = traceback, traceback.tb_next
    return _handle(innermost.tb_frame, innermost.tb_lineno) if innermost else None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _key(rank: int) -> str:
    return f"contentv/watch/{rank}"
