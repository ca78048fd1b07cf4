"""One progress line on stderr with the time left: a bar on a terminal, plain lines in a log file."""

import math
import sys
import time
from typing import TextIO

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 5.0
"""In a log file; the first and the last line always come. A terminal's bar shows every advance."""


class Progress:
    """Progress of one long piece of work, counted in `unit`s from `done` to `total`."""

    def __init__(self, title: str, *, total: int, done: int = 0, unit: str, stream: TextIO | None = None):
        self._title = title
        self._total = total
        self._unit = unit
        self._stream = stream or sys.stderr
        self._started = time.monotonic()
        self._shown = -math.inf
        self._first = self._done = done
        self._bar = None
        if self._stream.isatty():
            self._bar = tqdm(
                desc=title, total=total, initial=done, unit=unit, file=self._stream, dynamic_ncols=True, mininterval=0
            )

    def advance_to(self, done: int, values: dict[str, float] | None = None) -> None:
        """Show that `done` of the total are finished, with the latest `values`."""
        shown = "  ".join(f"{name} {value:.4g}" for name, value in (values or {}).items())
        self._done = done
        if self._bar is not None:
            self._bar.set_postfix_str(shown, refresh=False)
            self._bar.update(done - self._bar.n)
            return
        now = time.monotonic()
        if now - self._shown < SECONDS_BETWEEN_LINES and done < self._total:
            return
        self._shown = now
        parts = [f"{self._title}: {self._unit} {done}/{self._total}", shown, f"time left {self._time_left(now)}"]
        print("  ".join(part for part in parts if part), file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the bar as it stands and end its line."""
        if self._bar is not None:
            self._bar.close()

    def _time_left(self, now: float) -> str:
        finished = self._done - self._first
        if finished <= 0:
            return "unknown"
        seconds = (now - self._started) / finished * (self._total - self._done)
        return tqdm.format_interval(max(seconds, 0))
