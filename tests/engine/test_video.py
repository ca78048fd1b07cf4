"""Video files written, read back and laid out."""

import numpy as np
import pytest
import torch
from PIL import Image

from contentv.engine.video import SheetRow, contact_sheet, read_frames, to_bytes, to_pixels, write_mp4


def ramp(frames: int = 7, height: int = 34, width: int = 58) -> torch.Tensor:
    """[3, F, Y, X] in [-1, 1]: a smooth picture that shifts and brightens."""
    frame, row, column = (torch.arange(n).float() for n in (frames, height, width))
    red = torch.sin((column[None, None, :] + 2 * frame[:, None, None]) / 15) + 0 * row[None, :, None]
    green = torch.cos(row[None, :, None] / 11) + 0 * red
    blue = (frame[:, None, None] / frames - 0.5) + 0 * red
    return torch.stack([red, green, blue]) * 0.8


def test_a_written_file_shows_the_same_frames(tmp_path):
    pixels = ramp()
    write_mp4(tmp_path / "new" / "clip.mp4", pixels, fps=7.5)
    frames = dict(read_frames(tmp_path / "new" / "clip.mp4"))
    assert list(frames) == list(range(7))
    read = torch.stack([to_pixels(frames[number]) for number in range(7)], dim=1)
    assert read.shape == pixels.shape
    # The colour planes are halved and coded with loss; a swapped channel or frame order would cost far more.
    assert (read - pixels).square().mean() < 1e-3


def test_the_file_is_what_players_take(tmp_path):
    import av

    write_mp4(tmp_path / "clip.mp4", ramp(), fps=24)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.frames, float(stream.average_rate)) == (7, 24.0)


def test_only_wanted_frames_come_back(tmp_path):
    write_mp4(tmp_path / "clip.mp4", ramp(), fps=8)
    every = dict(read_frames(tmp_path / "clip.mp4"))
    some = dict(read_frames(tmp_path / "clip.mp4", {1, 4}))
    assert list(some) == [1, 4] and torch.equal(some[4], every[4])
    with pytest.raises(ValueError, match="found 7 frames; expected more than 9"):
        list(read_frames(tmp_path / "clip.mp4", {9}))


def test_no_video_is_refused(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"not a video")
    with pytest.raises(ValueError, match="clip.mp4"):
        list(read_frames(tmp_path / "clip.mp4"))
    with pytest.raises(ValueError, match="even"):
        write_mp4(tmp_path / "odd.mp4", torch.zeros(3, 2, 7, 8), fps=8)


def test_bytes_and_pixels_are_inverse():
    every = torch.arange(256).to(torch.uint8)
    assert torch.equal(to_bytes(to_pixels(every)), every)
    assert to_bytes(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_contact_sheet_shows_source_above_sample(tmp_path):
    dark, light = torch.full((3, 17, 8, 12), -1.0), torch.full((3, 5, 8, 12), 1.0)
    light[:, -1] = torch.tensor([1.0, -1.0, -1.0])[:, None, None]
    rows = [SheetRow(caption="one", videos={"source": dark, "sampled": light})] * 2
    contact_sheet(tmp_path / "new" / "sheet.png", rows)
    sheet = np.asarray(Image.open(tmp_path / "new" / "sheet.png"))
    assert sheet.shape == (2 * (16 + 2 * (16 + 6)), 9 * 24 + 12, 3)
    for top in (16, 16 + 60):
        assert (sheet[top : top + 16, 6 : 6 + 9 * 24] == 0).all()
        assert (sheet[top + 22 : top + 38, 6 : 6 + 4 * 24] == 255).all()
        assert (sheet[top + 22 : top + 38, 6 + 4 * 24 : 6 + 5 * 24] == (255, 0, 0)).all()
        assert (sheet[top - 16 : top, :200] < 128).any(), "the caption is drawn"
    with pytest.raises(ValueError, match="expected one per caption"):
        contact_sheet(tmp_path / "none.png", [])
