"""Small video files for tests, whose frames can be told apart by their brightness."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def level(number: int) -> int:
    """Brightness of frame `number`, far enough from its neighbours' to survive compression."""
    return 30 + 6 * number % 216


X264 = {"crf": "10", "x264-params": "rc-lookahead=0"}


def write_levels(
    path: Path,
    frames: int,
    *,
    rate: int = 10,
    size: tuple[int, int] = (48, 64),
    rotation: int = 0,
    pixel_ratio: int = 1,
    key_frames: int = 250,
    codec: str = "libx264",
    brightness=level,
) -> Path:
    """Frame n is grey of `brightness(n)`, its upper quarter white."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(rate))
        stream.height, stream.width = size
        options = X264 if codec == "libx264" else {"qmin": "1", "qmax": "2"}
        stream.pix_fmt, stream.options = "yuv420p", {**options, "g": str(key_frames)}
        stream.codec_context.sample_aspect_ratio = Fraction(pixel_ratio)
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(frames):
            pixels = np.full((*size, 3), brightness(number), dtype=np.uint8)
            if brightness is level:
                pixels[: size[0] // 4] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path
