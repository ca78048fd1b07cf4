"""Requests to stop: SIGTERM (Slurm's time limit, preemption) and SIGUSR1 (Slurm's early warning) set a flag.

Installed before torch is imported: a signal that arrives during that import would otherwise end the process.
"""

import signal
from types import FrameType

SAVED_NOT_FINISHED = 75
"""Exit status of a rank that was asked to stop and saved: EX_TEMPFAIL of sysexits.h. Jobs requeue on it."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """Remembers the first stop signal of this process; the trainer asks at the end of each step.

    A handler only stores a number: nothing else is safe between two arbitrary instructions. Ctrl-C keeps its meaning,
    so a person can still end a run at once.
    """

    def __init__(self):
        self._received: int | None = None
        self._replaced: dict[int, object] = {}

    @classmethod
    def install(cls) -> "StopSignals":
        """Take over SIGTERM and SIGUSR1. Only the main thread may (Python's rule)."""
        signals = cls()
        for number in STOP_SIGNALS:
            signals._replaced[number] = signal.signal(number, signals._remember)
        return signals

    def restore(self) -> None:
        """Give the signals back to whoever had them before `install`."""
        for number, handler in self._replaced.items():
            signal.signal(number, handler)
        self._replaced.clear()

    @property
    def stop_requested(self) -> bool:
        """Whether this process was asked to stop. Ranks may differ for a step: agree before acting on it."""
        return self._received is not None

    @property
    def received(self) -> str | None:
        """Name of the first stop signal, for example "SIGTERM"; None before any."""
        return None if self._received is None else signal.Signals(self._received).name

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self._received is None:
            self._received = number
