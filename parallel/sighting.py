"""What a rank last said of itself (parallel/watch.py publishes it). Imports no torch: who looks at a run needs none."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

PERIOD = 1.0
"""Seconds between two publications."""

SILENT = 5 * PERIOD
"""A rank that has not published for so long is dead, stopped, or cut off."""

SLOW = 1.25
"""A rank is slow if it computes so many times as long as the median of all."""

NOTICEABLE = 0.1
"""And spends at least so large a share of the time more on it: short of that nobody waits long for it."""


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """What a rank last said of itself."""

    rank: int
    step: int
    phase: str
    place: str
    """The collective it waits in, or the function it computes in."""
    waits: bool
    published: float
    """time.time(), by its own clock."""
    computing: float | None = None
    """Share of the last half minute in which it did not wait for others; None while too little was seen."""
    collective: str = ""
    """The last collective it was seen in; empty: none yet."""
    stack: str = ""
    """Its main thread's calls, innermost first, once it has not moved for a while; else empty."""
    host: str = ""
    process: int = 0
    """Its number on that host."""

    def describe(self, now: float) -> str:
        silent = now - self.published
        doing = f"{'waiting in' if self.waits else 'computing in'} {self.place}"
        seen = f"silent for {silent:.0f} s, last seen" if silent > SILENT else "is"
        last = f", last collective {self.collective}" if self.collective and not self.waits else ""
        stack = f", stack: {self.stack}" if self.stack else ""
        return f"rank {self.rank} {seen} at step {self.step}, {self.phase}, {doing}{last}{stack}"


def slow_ranks(sightings: Sequence[Sighting]) -> list[str]:
    """`rank 3 computes 1.8 x as long as the median of 8 ranks (n2)` for each rank that the others wait for.

    All ranks' steps take equally long, since they wait for each other: what differs is how much of it is work of
    their own. On an accelerator that is the host's work, since kernels run behind its back.
    """
    shares = {seen.rank: seen for seen in sightings if seen.computing is not None}
    if len(shares) < 2:
        return []
    usual = median(seen.computing for seen in shares.values())
    slow = [seen for seen in shares.values() if seen.computing >= SLOW * usual and seen.computing - usual >= NOTICEABLE]
    return [
        f"rank {seen.rank} computes {seen.computing / max(usual, 0.01):.1f} x as long as the median of {len(shares)} "
        f"ranks ({seen.host})"
        for seen in slow
    ]
