"""Small video files for tests, whose frames can be told apart by their brightness."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def level(number: int) -> int:
    """Brightness of frame `number`, far enough from its neighbours' to survive compression."""
    return 30 + 6 * number % 216


def write_levels(path: Path, frames: int, *, rate: int = 10, size: tuple[int, int] = (48, 64), rotation: int = 0,
                 key_frames: int = 250, brightness=level) -> Path:  # fmt: skip
    """Frame n is grey of `brightness(n)`, its upper quarter white."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate))
        stream.height, stream.width = size
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "10", "g": str(key_frames), "x264-params": "rc-lookahead=0"}
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(frames):
            pixels = np.full((*size, 3), brightness(number), dtype=np.uint8)
            if brightness is level:
                pixels[: size[0] // 4] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path
