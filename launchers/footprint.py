"""Starting the stages of a longer piece of work, and what they take: memory of all processes alive at once."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import psutil

from ..parallel.durable import write_text

COSTS_FILE = "costs.json"
INTERVAL = 0.5
"""Seconds between two looks at the memory."""
END_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Footprint:
    """Runs stages one after another; `peak_rss_mib` is the largest sum of resident memory seen while one ran.

    A page that processes share counts once for each of them, so the sum errs on the high side.
    """

    def __init__(self):
        self.peak_rss_mib = 0.0

    def run(self, command: Sequence[str], watch: Callable[[subprocess.Popen], None] | None = None, **options) -> str:
        """Runs a stage to its end; returns its stdout where `stdout=PIPE` is among the options.

        `watch(process)` is called at every look and may kill the stage. The stage has a process group of its own, of
        which nothing is left in the end, also if this process is interrupted. Raises CalledProcessError for a status
        that is not 0, being killed by `watch` included, and whatever `watch` raises, which ends the stage.
        """
        with subprocess.Popen(command, start_new_session=True, text=True, **options) as process:
            try:
                output = self._output(process, watch)
            finally:
                # Whatever ended it: a rank that is killed leaves its helper processes behind.
                kill(process)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        return output

    def _output(self, process: subprocess.Popen, watch: Callable[[subprocess.Popen], None] | None) -> str:
        while True:
            try:
                return process.communicate(timeout=INTERVAL)[0]
            except subprocess.TimeoutExpired:
                self.peak_rss_mib = max(self.peak_rss_mib, tree_rss_mib(os.getpid()))
                if watch:
                    watch(process)


class StageCosts:
    """Seconds and memory of everything after the downloads, over all calls that a run took to make."""

    def __init__(self, path: Path, footprint: Footprint):
        self.path, self.footprint, self.started = path, footprint, time.monotonic()
        earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.seconds_before, self.peak_before = earlier.get("seconds", 0.0), earlier.get("peak_rss_mib", 0.0)
        self.summary_of: str | None = earlier.get("summary_of")
        """What summary.json was computed from (`reuse.digest`); None before there is one."""

    @classmethod
    @contextlib.contextmanager
    def counting(cls, folder: Path, footprint: Footprint) -> Iterator["StageCosts"]:
        """Counts what is done inside; writes costs.json however it ends, for the call that goes on."""
        costs = cls(folder / COSTS_FILE, footprint)
        try:
            yield costs
        finally:
            write_text(costs.path, json.dumps(costs.figures() | {"summary_of": costs.summary_of}, indent=2) + "\n")

    def figures(self) -> dict[str, float]:
        """As summary.json has them."""
        return {
            "seconds": round(self.seconds_before + time.monotonic() - self.started, 1),
            "peak_rss_mib": round(max(self.peak_before, self.footprint.peak_rss_mib), 1),
        }


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to a stage and everything it started, as a failing machine would."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def ending_like_ctrl_c() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise KeyboardInterrupt too: no stage outlives the command that started it."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    replaced = {number: signal.signal(number, interrupt) for number in END_SIGNALS}
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


def tree_rss_mib(root: int) -> float:
    """Resident memory of a process and all its descendants, in MiB."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(root)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
    return total / 2**20
