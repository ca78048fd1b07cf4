"""Which bucket a clip goes into: the longest its duration fills, of the frame size nearest to its aspect ratio.

All sizes hold about the same number of pixels, so that one length costs the same in every shape. Imports no torch.
"""

import math
from dataclasses import dataclass

from ...model.config import PATCH
from .manifest import Bucket
from .refusal import ClipRefused

RATIOS = (2, 16 / 9, 3 / 2, 4 / 3, 1, 3 / 4, 2 / 3, 9 / 16, 1 / 2)
"""Width over height."""

STEP = 8 * PATCH
"""Pixels; a multiple of it is a whole number of patches of latents."""

TOLERANCE = 0.05
"""Share of a frame by which a clip may miss its bucket's duration: container headers round."""


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """The buckets an encoding may fill."""

    frames: tuple[int, ...]
    """Lengths, each 1 + 4k; 1: images."""
    height: int
    width: int
    """The size that is preferred, and whose area all others have nearly."""
    fps: float
    """Frames a second of what is encoded, whatever the video has."""

    def __post_init__(self):
        if not self.frames or any(type(count) is not int or count < 1 or count % 4 != 1 for count in self.frames):
            given = ", ".join(map(str, self.frames)) or "none"
            raise ValueError(f"--frames is {given}; give one or more of 1, 5, 9, ... (1 + 4k)")
        for name in ("height", "width"):
            if getattr(self, name) < STEP or getattr(self, name) % STEP:
                raise ValueError(f"--size: {name} is {getattr(self, name)} pixels; it must be a multiple of {STEP}")
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"--fps is {self.fps}; it must be a finite number above 0")

    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of every shape, the preferred one first."""
        area = self.height * self.width
        others = {(_whole(math.sqrt(area / ratio)), _whole(math.sqrt(area * ratio))) for ratio in RATIOS}
        return [(self.height, self.width), *sorted(others - {(self.height, self.width)})]

    def seconds(self, frames: int) -> float:
        """From the first to the last of so many frames."""
        return (frames - 1) / self.fps

    def choose(self, seconds: float, height: int, width: int) -> Bucket:
        """The bucket of a clip whose last frame comes `seconds` after its first; `ClipRefused` if none fits."""
        slack = TOLERANCE / self.fps
        fitting = [count for count in self.frames if self.seconds(count) <= seconds + slack]
        if not fitting:
            shortest = min(self.frames)
            raise ClipRefused(
                "too short",
                f"{seconds:.2f} s from first to last frame; {shortest} frames at {self.fps:g} a second need "
                f"{self.seconds(shortest):.2f}: add a smaller one to --frames",
            )

        def distance(size: tuple[int, int]) -> float:
            return abs(math.log(size[1] / size[0] * height / width))

        rows, columns = min(self.sizes(), key=distance)
        if height < rows or width < columns:
            raise ClipRefused(
                "too small", f"{height} x {width} pixels; they would have to grow to {rows} x {columns}: lower --size"
            )
        return Bucket(max(fitting), rows, columns)


def _whole(pixels: float) -> int:
    return max(STEP, round(pixels / STEP) * STEP)
