"""Windows: which frames they take, and how small frames are made."""

import numpy as np
import pytest
import torch

from contentv.engine.data.clips import Clip, ClipManifest, Crop, FrameRange
from contentv.engine.data.manifest import Bucket
from contentv.engine.data.windows import centred, count_windows, first_frames, read_windows, shrink, source_windows
from contentv.engine.video import write_mp4

SIZE = Bucket(5, 16, 24)


def clip(**changes) -> Clip:
    content = {
        "name": "grey",
        "caption": "grey turns white",
        "file": "grey.mp4",
        "stride": 3,
        "train": FrameRange(first=2, stop=30, windows=4),
        "held_out": FrameRange(first=30, stop=43, windows=1),
    }
    return Clip(**{**content, **changes})


@pytest.fixture
def folder(tmp_path):
    """44 flat frames, each 5 levels brighter than the one before: a frame's brightness is its number."""
    levels = (torch.arange(44) * 5 + 10).float() / 127.5 - 1
    write_mp4(tmp_path / "grey.mp4", levels[None, :, None, None].expand(3, 44, 48, 80), fps=8)
    return tmp_path


def test_windows_take_the_frames_they_say(folder):
    manifest = ClipManifest(bucket=SIZE, packages=(), clips=(clip(),))
    windows = list(read_windows(manifest, folder))
    assert [(w.sample, w.split, w.first_frame) for w in windows] == [
        (0, "train", 2),
        (1, "train", 7),
        (2, "train", 12),
        (3, "train", 17),
        (4, "held_out", 30),
    ]
    assert count_windows(manifest) == 5
    for window in windows:
        assert window.frames_3FYX.shape == (3, *SIZE) and window.frames_3FYX.dtype == torch.uint8
        numbers = (window.frames_3FYX.float().mean((0, 2, 3)) - 10) / 5
        expected = torch.arange(5) * 3.0 + window.first_frame
        assert (numbers - expected).abs().max() < 0.5
    middle = source_windows(manifest, folder)["grey turns white"]
    assert torch.equal(middle, windows[2].pixels_3FYX) and middle.min() >= -1 and middle.max() <= 1


def test_windows_fill_their_range_and_do_not_leave_it():
    for stop, windows, stride in ((30, 4, 3), (99, 8, 2), (15, 3, 3), (50, 1, 7), (40, 0, 2)):
        chosen = clip(train=FrameRange(first=2, stop=stop, windows=windows), stride=stride)
        firsts = first_frames(chosen, "train", 5)
        assert len(firsts) == windows
        assert all(first >= 2 and first + 4 * stride < stop for first in firsts)
        if windows > 1:
            assert firsts[0] == 2 and firsts[-1] + 4 * stride == stop - 1


def test_shrinking_averages_areas():
    frame = torch.randint(0, 256, (3, 48, 72), dtype=torch.uint8)
    expected = np.rint(frame.double().numpy().reshape(3, 16, 3, 24, 3).mean((2, 4)))
    assert np.abs(shrink(frame, SIZE).numpy().astype(float) - expected).max() <= 1
    crop = Crop(top=5, left=7, height=32, width=48)
    expected = frame[:, 5:37, 7:55].double().numpy().reshape(3, 16, 2, 24, 2).mean((2, 4))
    assert np.abs(shrink(frame, SIZE, crop).numpy() - expected).max() <= 0.5 + 1e-6


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(48, 80, (0, 4, 48, 72)), (90, 60, (25, 0, 40, 60)), (32, 48, (0, 0, 32, 48)), (144, 176, (13, 0, 117, 176))],
)
def test_the_centre_is_kept(height, width, expected):
    assert centred(height, width, SIZE) == Crop(**dict(zip(("top", "left", "height", "width"), expected, strict=True)))


def test_a_crop_that_does_not_fit_is_refused():
    frame = torch.zeros(3, 48, 72, dtype=torch.uint8)
    for crop in (Crop(top=40, left=0, height=16, width=24), Crop(top=0, left=0, height=8, width=24)):
        with pytest.raises(ValueError, match="the crop must lie inside"):
            shrink(frame, SIZE, crop)


def test_a_range_beyond_the_clip_is_refused(folder):
    manifest = ClipManifest(bucket=SIZE, packages=(), clips=(clip(held_out=FrameRange(first=40, stop=60, windows=1)),))
    with pytest.raises(ValueError, match="found 44 frames"):
        list(read_windows(manifest, folder))
