"""Anybody's video files: what one is, and the small frames of its windows, or why it cannot be used.

A file's header is not trusted: frames are taken by their own times, and a stream that is damaged or ends before its
header says is refused, never padded.
"""

import heapq
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

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

LARGEST_PICTURE = 2**27
"""Pixels. 8K video has a quarter of it; without a limit, a picture of one megabyte may take all the memory there is."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a file's header and its first frame say, as it is shown."""

    seconds: float
    """From the first frame to the last; 0 for an image."""
    step: float
    """Seconds from one frame to the next, on average; 0 where that is not known."""
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Cut:
    """The windows to take from one clip."""

    bucket: Bucket
    starts: tuple[float, ...]
    """Seconds from the file's first frame, ascending."""
    fps: float


class Frame(NamedTuple):
    """A decoded frame."""

    time: float
    """Seconds from the file's first frame."""
    seconds: float
    """For which it is shown; 0 where that is not known."""
    number: int
    """Tells frames apart."""
    picture: Any
    """PyAV's."""


def look(path: Path) -> Look:
    """Opens a file and decodes its first frame; `ClipRefused` if that fails."""
    with _opened(path) as (container, stream):
        frame = next(container.decode(stream), None)
        if frame is None:
            raise ClipRefused("unreadable", "no frame in it")
        height, width = _size(frame, stream)
        if _turns(frame) % 2:
            height, width = width, height
        step = _step(stream)
        seconds = float(stream.duration * stream.time_base) - step if stream.duration else _seconds(container, stream)
    return Look(seconds=max(0.0, seconds), step=step, height=height, width=width)


def cut(seen: Look, buckets: Buckets, begin: float, end: float | None, windows: int) -> Cut:
    """At most `windows` windows, spread evenly over a file's [begin, end); a single one lies in its middle."""
    # The frame that is shown at `end` is the next clip's first.
    last = seen.seconds if end is None else min(max(begin, end - seen.step), seen.seconds)
    if last < begin:
        raise ClipRefused("too short", f"it begins at {begin:.2f} s; the last frame comes at {seen.seconds:.2f} s")
    bucket = buckets.choose(last - begin, seen.height, seen.width)
    room = max(0.0, last - begin - buckets.seconds(bucket.frames))
    count = min(windows, 1 + int(room * buckets.fps + TOLERANCE))  # no two begin at the same frame
    places = [0.5] if count == 1 else [number / (count - 1) for number in range(count)]
    return Cut(bucket=bucket, starts=tuple(begin + room * place for place in places), fps=buckets.fps)


def read_cut(path: Path, planned: Cut) -> list[Tensor]:
    """uint8 [3, F, Y, X] of every window, in one pass over the file; `ClipRefused` for damage, darkness, stutter."""
    small: dict[int, Tensor] = {}
    chosen: list[list[int]] = [[] for _ in planned.starts]
    with _opened(path) as (container, stream):
        for window, frame in _nearest(_frames_from(container, stream, planned.starts[0]), planned):
            chosen[window].append(frame.number)
            if frame.number not in small:
                small[frame.number] = shrink(_upright(frame.picture, stream), planned.bucket)
    for numbers in chosen:
        _check_rate(numbers, planned)
    windows = [torch.stack([small[number] for number in numbers], dim=1) for numbers in chosen]
    if all(float((window < DARK).float().mean()) > DARK_SHARE for window in windows):
        raise ClipRefused("black", f"over {DARK_SHARE:.0%} of its values are below {DARK} of 255")
    return windows


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    limit = {"max_pixels": str(LARGEST_PICTURE)}
    try:
        # As a file: a name such as 10:30.mp4 would be taken for an address.
        with av.open(f"file:{path}", options=limit) as container:
            # Not the first: that may be the picture on a cover.
            stream = container.streams.best("video")
            if stream is None:
                raise ClipRefused("unreadable", "no video stream in it")
            stream.codec_context.options = limit
            yield container, stream
    # What damaged files raise is up to ffmpeg, and to the arithmetic on what it reports.
    except (av.error.FFmpegError, OSError, ValueError, ArithmeticError, IndexError) as error:
        # Of ffmpeg's errors the words alone: the row of the report names the file.
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, av.error.ArgumentError):
            said += f" (or more than {LARGEST_PICTURE} pixels)"
        raise ClipRefused("unreadable", " ".join(said.split())[:200]) from error


def _seconds(container: Any, stream: Any) -> float:
    """From the first frame to the last, by the packets near the end, or else by all.

    For headers that say only how long the longest stream is: sound often ends after the last picture.
    """
    first = stream.start_time or 0
    for place in (container.duration, 0):
        if place is not None:
            container.seek(place, backward=True)
        times = [packet.pts for packet in container.demux(stream) if packet.pts is not None]
        if times:
            return float((max(times) - first) * stream.time_base)
    return 0.0


def _frames_from(container: Any, stream: Any, first: float) -> Iterator[Frame]:
    """All frames, from one at or before `first` seconds on; by way of a key frame where that is quicker."""
    origin, back = stream.start_time or 0, 0.0
    # A program stream gives so few times that after a jump ffmpeg guesses them, and wrongly.
    while first - back > SEEK_FROM and container.format.name != "mpeg":
        container.seek(origin + int((first - back) / stream.time_base), stream=stream, backward=True)
        frames = _frames(container, stream)
        found = next(frames, None)
        # Formats without an index, and key frames that later frames are shown before, may lead too far.
        if found is not None and found.time <= first and not found.picture.is_corrupt:
            return chain([found], frames)
        back = 2 * back + 1
    if back:
        container.seek(origin, stream=stream, backward=True)
    return _frames(container, stream)


def _frames(container: Any, stream: Any) -> Iterator[Frame]:
    origin, step = stream.start_time or 0, _step(stream)
    for number, picture in enumerate(container.decode(stream)):
        if picture.pts is None:
            raise ClipRefused("unreadable", "a frame in it has no time")
        time, seconds = (float(ticks * stream.time_base) for ticks in (picture.pts - origin, picture.duration or 0))
        yield Frame(time, seconds or step, number, picture)


def _nearest(frames: Iterator[Frame], planned: Cut) -> Iterator[tuple[int, Frame]]:
    """(window, the frame nearest to that window's next time), times ascending.

    A window's times count from the frame nearest to its start: had they their own place between two frames, rounding
    halfway would show one of these twice and the next one never.
    """
    due = [(start, window) for window, start in enumerate(planned.starts)]
    origins, taken = list(planned.starts), [0] * len(due)
    before: Frame | None = None
    for frame in chain(frames, [None]):
        if frame is not None:
            _check_frame(frame, before)
        while due and (frame is None or frame.time >= due[0][0]):
            wanted, window = due[0]
            nearest = _nearer(before, frame, wanted)
            yield window, nearest
            origins[window] = origins[window] if taken[window] else nearest.time
            taken[window] += 1
            heapq.heappop(due)
            if taken[window] < planned.bucket.frames:
                heapq.heappush(due, (origins[window] + taken[window] / planned.fps, window))
        if not due:
            return
        before = frame


def _nearer(before: Frame | None, after: Frame | None, wanted: float) -> Frame:
    """Whichever of two neighbours is nearer to a time between them; before there is none, or after."""
    if after is None:
        ends = before.time + before.seconds if before else 0.0
        if wanted >= ends:
            said = f"its frames end at {ends:.2f} s, before {wanted:.2f} s as its header says"
            raise ClipRefused("unreadable", said)
        return before
    return before if before is not None and wanted - before.time < after.time - wanted else after


def _check_frame(frame: Frame, before: Frame | None) -> None:
    if frame.picture.is_corrupt:
        raise ClipRefused("unreadable", f"damaged at {frame.time:.2f} s")
    if before is not None and frame.time < before.time:
        raise ClipRefused("unreadable", f"its times go back from {before.time:.2f} s to {frame.time:.2f} s")


def _check_rate(chosen: list[int], planned: Cut) -> None:
    distinct = len(set(chosen))
    if distinct < DISTINCT_SHARE * len(chosen):
        raise ClipRefused(
            "too few frames a second",
            f"{len(chosen)} frames at {planned.fps:g} a second show {distinct} different ones: lower --fps",
        )


def _step(stream: Any) -> float:
    """Seconds from one frame to the next, on average; 0 where that is not known."""
    rate = stream.average_rate or stream.guessed_rate
    return 1 / float(rate) if rate else 0.0


def _size(picture: Any, stream: Any) -> tuple[int, int]:
    """Height and width at which a stored picture, whose pixels may be oblong, has square ones; it only grows."""
    ratio = stream.sample_aspect_ratio or 1
    height, width = max(picture.height, round(picture.height / ratio)), max(picture.width, round(picture.width * ratio))
    if height * width > LARGEST_PICTURE:
        raise ClipRefused("unreadable", f"{height} x {width} pixels; {LARGEST_PICTURE} are the most that are taken")
    return height, width


def _upright(picture: Any, stream: Any) -> Tensor:
    """uint8 [3, Y, X] as it is shown: phones store portraits lying down and say so beside them."""
    height, width = _size(picture, stream)
    pixels_YX3 = picture.to_ndarray(format="rgb24", height=height, width=width)
    return torch.rot90(torch.from_numpy(pixels_YX3).permute(2, 0, 1), _turns(picture), dims=(1, 2))


def _turns(picture: Any) -> int:
    """Quarters of a circle, against the clock."""
    return round((picture.rotation or 0) / 90)
