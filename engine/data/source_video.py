"""Anybody's video files: what one is, and the small frames of its windows, or why it cannot be used.

A file's header is not trusted: frames are taken by their own times, and a stream that is damaged or ends before its
header says is refused, never padded.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import torch
from torch import Tensor

from .buckets import TOLERANCE, Buckets
from .manifest import Bucket
from .refusal import ClipRefused
from .windows import shrink

DARK = 24
"""Of 255. Video black is 16, and compression scatters around it."""

DARK_SHARE = 0.99
"""A clip with more of its values below DARK shows nothing."""

DISTINCT_SHARE = 0.95
"""A window with fewer different source frames would teach the model to stutter."""

SEEK_FROM = 2.0
"""Seconds into a file from which jumping to the nearest key frame is quicker than decoding up to it."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a file's header says, and the shape of its first frame as it is shown."""

    seconds: float
    """From the first frame to the last; 0 for an image."""
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Cut:
    """The windows to take from one clip."""

    bucket: Bucket
    starts: tuple[float, ...]
    """Seconds from the file's first frame, ascending."""
    fps: float

    def times(self, start: float) -> list[float]:
        return [start + number / self.fps for number in range(self.bucket.frames)]


def look(path: Path) -> Look:
    """Opens a file and decodes its first frame; `ClipRefused` if that fails."""
    with _opened(path) as (container, stream):
        frame = next(container.decode(stream), None)
        if frame is None:
            raise ClipRefused("unreadable", "no frame in it")
        size = _upright(frame).shape[1:]
        duration = stream.duration * stream.time_base if stream.duration else (container.duration or 0) / av.time_base
        rate = stream.average_rate or stream.guessed_rate
        last = float(duration) - (1 / float(rate) if rate else 0)
    return Look(seconds=max(0.0, last), height=size[0], width=size[1])


def cut(seen: Look, buckets: Buckets, begin: float, end: float | None, windows: int) -> Cut:
    """At most `windows` windows, spread evenly over [begin, end] of a file; a single one lies in its middle."""
    last = seen.seconds if end is None else min(end, seen.seconds)
    bucket = buckets.choose(last - begin, seen.height, seen.width)
    room = max(0.0, last - begin - buckets.seconds(bucket.frames))
    count = min(windows, 1 + int(room * buckets.fps + TOLERANCE))  # no two begin at the same frame
    places = [0.5] if count == 1 else [number / (count - 1) for number in range(count)]
    return Cut(bucket=bucket, starts=tuple(begin + room * place for place in places), fps=buckets.fps)


def read_cut(path: Path, planned: Cut) -> list[Tensor]:
    """uint8 [3, F, Y, X] of every window, in one pass over the file; `ClipRefused` for damage, darkness, stutter."""
    wanted = sorted({time for start in planned.starts for time in planned.times(start)})
    frames: dict[float, tuple[int, Tensor]] = {}
    with _opened(path) as (container, stream):
        for time, number, frame in _nearest(container, stream, wanted):
            is_new = not frames or number != next(reversed(frames.values()))[0]
            small = shrink(_upright(frame), planned.bucket) if is_new else next(reversed(frames.values()))[1]
            frames[time] = number, small
    windows = []
    for start in planned.starts:
        chosen = [frames[time] for time in planned.times(start)]
        _check_rate(chosen, planned)
        windows.append(torch.stack([small for _, small in chosen], dim=1))
    if all(float((window < DARK).float().mean()) > DARK_SHARE for window in windows):
        raise ClipRefused("black", f"over {DARK_SHARE:.0%} of its values are below {DARK} of 255")
    return windows


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ClipRefused("unreadable", "no video stream in it")
            yield container, container.streams.video[0]
    # What damaged files raise is up to ffmpeg, and to the arithmetic on what it reports.
    except (av.error.FFmpegError, OSError, ValueError, ArithmeticError, IndexError) as error:
        # Of ffmpeg's errors the words alone: the row of the report names the file.
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ClipRefused("unreadable", " ".join(said.split())[:200]) from error


def _nearest(container: Any, stream: Any, wanted: list[float]) -> Iterator[tuple[float, int, Any]]:
    """(wanted time, a number that tells frames apart, the frame nearest to that time), times ascending."""
    origin = float(stream.start_time * stream.time_base) if stream.start_time else 0.0
    if wanted[0] > SEEK_FROM:
        container.seek(int((wanted[0] + origin) / stream.time_base), stream=stream, backward=True)
    before: tuple[float, int, Any] | None = None
    place, number, last_step = 0, 0, 1 / float(stream.average_rate or 1)
    for frame in container.decode(stream):
        if frame.is_corrupt:
            raise ClipRefused("unreadable", f"damaged at {frame.time or 0:.2f} s")
        time = (frame.time or 0.0) - origin
        while place < len(wanted) and time >= wanted[place]:
            is_earlier_nearer = before is not None and wanted[place] - before[0] < time - wanted[place]
            _, which, chosen = before if is_earlier_nearer else (time, number, frame)
            yield wanted[place], which, chosen
            place += 1
        if place == len(wanted):
            return
        if before is not None:
            last_step = max(1e-6, time - before[0])
        before, number = (time, number, frame), number + 1
    # A time that lies within the last frame is that frame's.
    while place < len(wanted) and before is not None and wanted[place] < before[0] + last_step:
        yield wanted[place], before[1], before[2]
        place += 1
    if place < len(wanted):
        ends = before[0] + last_step if before else 0.0
        raise ClipRefused("unreadable", f"its frames end at {ends:.2f} s, before {wanted[-1]:.2f} s as its header says")


def _check_rate(chosen: list[tuple[int, Tensor]], planned: Cut) -> None:
    distinct = len({number for number, _ in chosen})
    if distinct < DISTINCT_SHARE * len(chosen):
        raise ClipRefused(
            "too few frames a second",
            f"{len(chosen)} frames at {planned.fps:g} a second show {distinct} different ones: lower --fps",
        )


def _upright(frame: Any) -> Tensor:
    """uint8 [3, Y, X] as it is shown: phones store portraits lying down and say so beside them."""
    pixels_3YX = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
    return torch.rot90(pixels_3YX, round((frame.rotation or 0) / 90), dims=(1, 2))
