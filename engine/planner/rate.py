"""A rate that depends on how much one call has to do: measured points, and what lies between them."""

from bisect import bisect
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import log

OCTAVE = 2.0
"""Calls whose work differs by less than this factor are one point."""


@dataclass(frozen=True)
class Rate:
    """(work of a call, work a second), the least work first: operations, or bytes. One point: the same for all."""

    points: tuple[tuple[float, float], ...]

    def __post_init__(self):
        works = [work for work, _ in self.points]
        assert works and works == sorted(set(works)) and all(min(point) > 0 for point in self.points), self.points

    @classmethod
    def flat(cls, rate: float) -> "Rate":
        return cls(((1.0, rate),))

    def at(self, work: float) -> float:
        """Work a second: straight between points over the logarithm of the work, held flat beyond the ends."""
        points = self.points
        if len(points) == 1 or work <= points[0][0]:
            return points[0][1]
        if work >= points[-1][0]:
            return points[-1][1]
        place = bisect(self._logarithms, log(work))
        low, high = self._logarithms[place - 1 : place + 1]
        (_, before), (_, behind) = points[place - 1 : place + 1]
        return before + (behind - before) * (log(work) - low) / (high - low)

    def seconds(self, work: float, calls: int = 1) -> float:
        """Of `work` in all, shared out evenly among that many calls."""
        return work / self.at(work / calls) if work else 0.0

    def __mul__(self, factor: float) -> "Rate":
        return Rate(tuple((work, rate * factor) for work, rate in self.points))

    @property
    def best(self) -> float:
        return max(rate for _, rate in self.points)

    @cached_property
    def _logarithms(self) -> list[float]:
        return [log(work) for work, _ in self.points]


def rate_of(calls: Iterable[tuple[float, float]]) -> Rate:
    """From measured calls, (work, seconds): of those within an octave all the work over all the seconds."""
    octaves: list[list[tuple[float, float]]] = []
    for work, seconds in sorted(calls):
        if not octaves or work >= OCTAVE * octaves[-1][0][0]:
            octaves.append([])
        octaves[-1].append((work, seconds))
    sums = [(len(each), sum(work for work, _ in each), sum(seconds for _, seconds in each)) for each in octaves]
    return Rate(tuple((work / count, work / seconds) for count, work, seconds in sums))
