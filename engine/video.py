"""Video in and out: frames of a file, an H.264 file of frames, and the contact sheet that lays both side by side.

PyAV carries ffmpeg and x264 in its wheel, so this runs wherever pip does.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..parallel.durable import replacing

X264 = {"crf": "16", "x264-params": "rc-lookahead=0"}
"""A constant rate factor that is visually lossless, so that what one sees is the model's. No look ahead: with it,
frames this small come out different from call to call (PyAV 18.1's x264, seen; not with asm=0)."""

SHEET_FRAMES = 9
SHEET_SCALE = 2
SHEET_MARGIN = 6
SHEET_LINE = 16
"""Pixels of the contact sheet for one line of caption."""


def read_frames(path: str | Path, wanted: set[int] | None = None) -> Iterator[tuple[int, Tensor]]:
    """Yields (frame number, uint8 [3, Y, X] red, green, blue) of the `wanted` frames, or of all, in order.

    Decodes as a stream and stops after the last wanted frame. ValueError if the file is no video or is too short.
    """
    last = max(wanted) if wanted else None
    number = -1
    try:
        with av.open(str(path)) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if wanted is None or number in wanted:
                    yield number, torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
                if number == last:
                    return
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"{path}: {error}; expected a video file that ffmpeg reads") from error
    if last is not None:
        raise ValueError(f"{path}: found {number + 1} frames; expected more than {last}: correct the frame range")


def write_mp4(path: str | Path, pixels_3FYX: Tensor, fps: float) -> None:
    """Writes float [3, F, Y, X] in [-1, 1] as H.264, yuv420p, which every player takes; Y and X must be even.

    The file has its name only once it is whole.
    """
    if pixels_3FYX.dim() != 4 or pixels_3FYX.shape[0] != 3 or pixels_3FYX.shape[2] % 2 or pixels_3FYX.shape[3] % 2:
        raise ValueError(f"pixels are {tuple(pixels_3FYX.shape)}; expected [3, F, Y, X] with even Y and X")
    frames_FYX3 = to_bytes(pixels_3FYX).permute(1, 2, 3, 0).cpu().contiguous().numpy()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = frames_FYX3.shape[1:3]
        stream.pix_fmt, stream.options = "yuv420p", X264
        for frame_YX3 in frames_FYX3:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_YX3, format="rgb24")))
        container.mux(stream.encode())


def to_bytes(pixels: Tensor) -> Tensor:
    """[-1, 1] to uint8, rounded to nearest; values outside are clamped."""
    return ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_pixels(frames: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]."""
    return frames.float() / 127.5 - 1


@dataclass(frozen=True, kw_only=True)
class SheetRow:
    """One caption's videos, what each is -> float [3, F, Y, X] in [-1, 1]; their lengths and sizes may differ."""

    caption: str
    videos: Mapping[str, Tensor]


def contact_sheet(path: str | Path, rows: Sequence[SheetRow]) -> None:
    """Writes a PNG: for each caption its text and below it the frames of each of its videos, in a row.

    Frames are evenly spread over each video, first and last included, and doubled in size so that one can look at them.
    """
    if not rows:
        raise ValueError("no row was given for the contact sheet; expected one per caption")
    sections = [_section(row) for row in rows]
    size = max(section.width for section in sections), sum(section.height for section in sections)
    sheet = Image.new("RGB", size, "white")
    top = 0
    for section in sections:
        sheet.paste(section, (0, top))
        top += section.height
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(Path(path)) as partial:
        sheet.save(partial, format="png")


def _section(row: SheetRow) -> Image.Image:
    strips = [_strip(pixels_3FYX) for pixels_3FYX in row.videos.values()]
    width = max(strip.shape[1] for strip in strips) + 2 * SHEET_MARGIN
    height = SHEET_LINE + sum(strip.shape[0] + SHEET_MARGIN for strip in strips)
    section = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(section).text(
        (SHEET_MARGIN, 2), f"{row.caption}  (from above: {', '.join(row.videos)})", fill="black"
    )
    top = SHEET_LINE
    for strip in strips:
        section.paste(Image.fromarray(strip), (SHEET_MARGIN, top))
        top += strip.shape[0] + SHEET_MARGIN
    return section


def _strip(pixels_3FYX: Tensor) -> np.ndarray:
    """Frames side by side, [Y, X, 3] uint8."""
    frames = pixels_3FYX.shape[1]
    chosen = torch.linspace(0, frames - 1, min(SHEET_FRAMES, frames)).round().long()
    strip_3YX = torch.cat(list(to_bytes(pixels_3FYX[:, chosen].cpu()).unbind(1)), dim=-1)
    larger = strip_3YX.repeat_interleave(SHEET_SCALE, -1).repeat_interleave(SHEET_SCALE, -2)
    return larger.permute(1, 2, 0).contiguous().numpy()
