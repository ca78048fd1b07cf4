"""Windows: short runs of small frames cut out of clips, the samples a codec encodes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ..video import read_frames, to_pixels
from .clips import Clip, ClipManifest, Crop, FrameRange
from .manifest import SPLITS, Bucket


@dataclass(frozen=True, kw_only=True)
class Window:
    """One window: `frames_3FYX` is uint8, frames `first_frame`, `first_frame + stride`, ... of its clip's file."""

    sample: int
    split: str
    clip: str
    caption: str
    first_frame: int
    frames_3FYX: Tensor

    @property
    def pixels_3FYX(self) -> Tensor:
        """float32 in [-1, 1]."""
        return to_pixels(self.frames_3FYX)


def read_windows(manifest: ClipManifest, folder: Path) -> Iterator[Window]:
    """Yields every window of every clip in `folder`; sample ids count them from 0 in this order.

    Clip by clip, train before held_out; only one clip's small frames are in memory at a time.
    """
    sample = 0
    for clip in manifest.clips:
        plan = [(split, first) for split in SPLITS for first in first_frames(clip, split, manifest.bucket.frames)]
        numbers = {first: frame_numbers(first, clip.stride, manifest.bucket.frames) for _, first in plan}
        wanted = {number for frames in numbers.values() for number in frames}
        small = {
            number: shrink(frame_3YX, manifest.bucket, clip.crop)
            for number, frame_3YX in read_frames(Path(folder) / clip.file, wanted)
        }
        for split, first in plan:
            yield Window(
                sample=sample,
                split=split,
                clip=clip.name,
                caption=clip.caption,
                first_frame=first,
                frames_3FYX=torch.stack([small[number] for number in numbers[first]], dim=1),
            )
            sample += 1


def count_windows(manifest: ClipManifest) -> int:
    """How many windows `read_windows` yields, without opening a file."""
    return sum(getattr(clip, split).windows for clip in manifest.clips for split in SPLITS)


def source_windows(manifest: ClipManifest, folder: Path) -> dict[str, Tensor]:
    """Caption -> float pixels_3FYX of its middle training window: what a contact sheet shows above a sample."""
    windows: dict[str, list[Window]] = {}
    for window in read_windows(manifest, folder):
        if window.split == "train":
            windows.setdefault(window.caption, []).append(window)
    return {caption: group[len(group) // 2].pixels_3FYX for caption, group in windows.items()}


def first_frames(clip: Clip, split: str, frames: int) -> list[int]:
    """Source frame numbers at which the clip's windows of `frames` frames begin, evenly spread over its range."""
    chosen: FrameRange = getattr(clip, split)
    room = chosen.stop - chosen.first - ((frames - 1) * clip.stride + 1)
    steps = max(chosen.windows - 1, 1)
    return [chosen.first + room * window // steps for window in range(chosen.windows)]


def frame_numbers(first: int, stride: int, frames: int) -> list[int]:
    """Source frame numbers of one window."""
    return list(range(first, first + stride * frames, stride))


def shrink(frame_3YX: Tensor, bucket: Bucket, crop: Crop | None = None) -> Tensor:
    """A uint8 frame cropped, then averaged over areas to the bucket's height and width; ValueError if it is smaller."""
    height, width = frame_3YX.shape[1:]
    crop = crop or centred(height, width, bucket)
    inside = crop.top >= 0 and crop.top + crop.height <= height and crop.left >= 0 and crop.left + crop.width <= width
    if not inside or crop.height < bucket.height or crop.width < bucket.width:
        raise ValueError(
            f"a frame of {height} x {width} pixels, cropped to {crop}, is to become {bucket.height} x {bucket.width}; "
            "the crop must lie inside the frame and be no smaller than the result: change crop or window size"
        )
    cropped = frame_3YX[:, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width].float()
    return adaptive_avg_pool2d(cropped, (bucket.height, bucket.width)).round().to(torch.uint8)


def centred(height: int, width: int, bucket: Bucket) -> Crop:
    """The largest centred rectangle of the bucket's aspect ratio."""
    crop_height = min(height, width * bucket.height // bucket.width)
    crop_width = min(width, height * bucket.width // bucket.height)
    return Crop(top=(height - crop_height) // 2, left=(width - crop_width) // 2, height=crop_height, width=crop_width)
