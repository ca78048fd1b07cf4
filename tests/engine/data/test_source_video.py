"""What is read out of video files: the frames nearest to the times asked for, upright, or a reason."""

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from contentv.engine.data import source_video
from contentv.engine.data.buckets import Buckets
from contentv.engine.data.manifest import Bucket
from contentv.engine.data.refusal import ClipRefused
from contentv.engine.data.source_video import Cut, cut, look, read_cut
from tests.engine.data.videos import level, write_levels

SMALL = Buckets(frames=(9, 5, 1), height=32, width=48, fps=5.0)


def numbers(window):
    """Which source frames a window shows, by their brightness at the bottom."""
    seen = window[0, :, -1, :].float().mean(dim=-1)
    table = np.array([level(number) for number in range(36)])
    return [int(abs(table - float(value)).argmin()) for value in seen]


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_levels(tmp_path_factory.mktemp("source") / "levels.mp4", 36)


def test_a_look(video):
    seen = look(video)
    assert seen.seconds == pytest.approx(3.5) and (seen.height, seen.width) == (48, 64)


def test_one_window_lies_in_the_middle_and_several_are_spread(video):
    seen = look(video)
    one = cut(seen, SMALL, 0.0, None, 1)
    assert one.bucket == Bucket(9, 32, 48) and one.starts == pytest.approx([0.95])
    assert cut(seen, SMALL, 0.0, None, 3).starts == pytest.approx([0, 0.95, 1.9])
    assert cut(seen, SMALL, 1.0, 3.1, 3).starts == pytest.approx([1.0, 1.2, 1.4])
    assert cut(seen, SMALL, 2.0, None, 2).bucket == Bucket(5, 32, 48)


def test_a_clip_ends_before_the_frame_that_the_next_one_begins_with(video):
    seen = look(video)
    shown = [numbers(window) for window in read_cut(video, cut(seen, SMALL, 1.0, 2.9, 2))]
    assert shown == [list(range(10, 27, 2)), list(range(12, 29, 2))]
    assert cut(seen, Buckets(frames=(1,), height=32, width=48, fps=5.0), 1.0, 1.05, 1).starts == (1.0,)
    with pytest.raises(ClipRefused, match="too short: it begins at 9.00 s; the last frame comes at 3.50 s"):
        cut(seen, SMALL, 9.0, None, 1)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_at_the_same_rate_every_frame_comes_once(suffix, tmp_path):
    """Also where a window in the middle begins between two frames, and where times are rounded to milliseconds."""
    buckets = Buckets(frames=(13,), height=32, width=48, fps=24.0)
    for length in range(13, 20):
        video = write_levels(tmp_path / f"{length}.{suffix}", length, rate=24)
        shown = numbers(read_cut(video, cut(look(video), buckets, 0.0, None, 1))[0])
        assert shown == list(range(shown[0], shown[0] + 13))
        assert abs(shown[0] - (length - 13) / 2) <= 0.5


def test_frames_are_those_nearest_to_their_times(video):
    windows = read_cut(video, Cut(bucket=Bucket(5, 32, 48), starts=(0.0, 0.62, 2.5), fps=5.0))
    assert windows[0].shape == (3, 5, 32, 48)
    assert list(map(numbers, windows)) == [[0, 2, 4, 6, 8], [6, 8, 10, 12, 14], [25, 27, 29, 31, 33]]
    # 3.54 s lies within the last frame, which is shown until 3.6 s.
    assert numbers(read_cut(video, Cut(bucket=Bucket(1, 32, 48), starts=(3.54,), fps=5.0))[0]) == [35]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi"])
def test_a_late_window_is_the_same_by_way_of_a_key_frame(suffix, tmp_path):
    """Wherever it begins: a jump may land on a key frame that other frames are shown before, or anywhere in a .ts."""
    codec = "mpeg4" if suffix == "avi" else "libx264"
    video = write_levels(tmp_path / f"late.{suffix}", 36, rate=5, key_frames=9, codec=codec)
    for first in range(10, 32):
        wanted = Cut(bucket=Bucket(5, 32, 48), starts=(first / 5,), fps=5.0)
        assert numbers(read_cut(video, wanted)[0]) == list(range(first, first + 5))


@pytest.mark.parametrize("suffix", ["mkv", "flv", "mp4"])
def test_sound_that_goes_on_after_the_last_frame(suffix, tmp_path):
    video = tmp_path / f"sound.{suffix}"
    with av.open(str(video), "w") as container:
        picture, sound = container.add_stream("libx264", rate=10), container.add_stream("aac", rate=44100)
        picture.height, picture.width, picture.pix_fmt = 48, 64, "yuv420p"
        for number in range(12):
            pixels = np.full((48, 64, 3), level(number), np.uint8)
            container.mux(picture.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(picture.encode())
        for _ in range(120):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 44100
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
    seen = look(video)
    assert seen.seconds == pytest.approx(1.1)
    assert [numbers(window)[-1] for window in read_cut(video, cut(seen, SMALL, 0.0, None, 2))] == [8, 11]


def test_times_that_go_back(tmp_path):
    """.avi has none of its own: with frames that are shown in another order than stored, ffmpeg guesses."""
    video = write_levels(tmp_path / "guessed.avi", 36)
    with pytest.raises(ClipRefused, match="unreadable: its times go back from 0.40 s to 0.30 s"):
        read_cut(video, Cut(bucket=Bucket(9, 32, 48), starts=(0.0,), fps=10.0))


def test_a_portrait_that_was_stored_lying_down_stands(tmp_path):
    for rotation, white in ((90, np.s_[:, :, :, :8]), (-90, np.s_[:, :, :, -8:]), (180, np.s_[:, :, -8:, :])):
        video = write_levels(tmp_path / f"{rotation}.mp4", 6, rotation=rotation)
        seen = look(video)
        size = (48, 64) if rotation == 180 else (64, 48)
        assert (seen.height, seen.width) == size
        (window,) = read_cut(video, Cut(bucket=Bucket(5, *size), starts=(0.0,), fps=10.0))
        assert window[white].float().mean() > 250 and window.float().mean() < 200


def test_an_image_is_a_video_of_one_frame(tmp_path):
    Image.new("RGB", (90, 60), (200, 30, 40)).save(tmp_path / "red.png")
    seen = look(tmp_path / "red.png")
    assert (seen.seconds, seen.height, seen.width) == (0.0, 60, 90)
    planned = cut(seen, SMALL, 0.0, None, 4)
    assert planned.bucket == Bucket(1, 32, 48) and planned.starts == (0.0,)
    (window,) = read_cut(tmp_path / "red.png", planned)
    assert window[:, 0, 5, 5].tolist() == [200, 30, 40]


def test_oblong_pixels_become_square(tmp_path):
    video = write_levels(tmp_path / "oblong.mp4", 6, pixel_ratio=2)
    assert (look(video).height, look(video).width) == (48, 128)
    lying = write_levels(tmp_path / "lying.mp4", 6, pixel_ratio=2, rotation=90)
    assert (look(lying).height, look(lying).width) == (128, 48)
    (window,) = read_cut(video, Cut(bucket=Bucket(5, 48, 128), starts=(0.0,), fps=10.0))
    assert window.shape == (3, 5, 48, 128)


def test_the_picture_on_a_cover_is_not_the_video(tmp_path):
    video = tmp_path / "cover.mkv"
    with av.open(str(video), "w") as container:
        cover, film = container.add_stream("mjpeg", rate=5), container.add_stream("libx264", rate=5)
        cover.height, cover.width, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        film.height, film.width, film.pix_fmt = 48, 64, "yuv420p"
        for stream, count in ((cover, 1), (film, 10)):
            pixels = np.zeros((stream.height, stream.width, 3), np.uint8)
            for _ in range(count):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
    assert (look(video).height, look(video).width) == (48, 64)


def test_a_name_is_no_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("10:30.png", "http:clip.png", "frame%03d.png"):
        Image.new("RGB", (90, 60)).save(tmp_path / name)
        assert look(Path(name)).width == 90


def test_a_small_file_of_a_huge_picture(tmp_path, monkeypatch):
    Image.new("RGB", (1200, 1000)).save(tmp_path / "huge.png")
    assert look(tmp_path / "huge.png").width == 1200
    monkeypatch.setattr(source_video, "LARGEST_PICTURE", 10**6)
    with pytest.raises(ClipRefused, match=r"unreadable: Invalid argument \(or more than 1000000 pixels\)"):
        look(tmp_path / "huge.png")


def test_darkness_and_stutter(tmp_path):
    black = write_levels(tmp_path / "black.mp4", 12, brightness=lambda _: 2)
    with pytest.raises(ClipRefused, match="black: over 99% of its values are below 24"):
        read_cut(black, cut(look(black), SMALL, 0.0, None, 1))
    lit = write_levels(tmp_path / "lit.mp4", 12, brightness=lambda number: 2 if number < 11 else 200)
    assert read_cut(lit, Cut(bucket=Bucket(5, 32, 48), starts=(0.3,), fps=5.0))
    slow = write_levels(tmp_path / "slow.mp4", 12, rate=2)
    with pytest.raises(ClipRefused, match="too few frames a second: 9 frames at 5 a second show 4 different ones"):
        read_cut(slow, cut(look(slow), SMALL, 0.0, None, 1))


def test_files_that_are_no_video(tmp_path):
    (tmp_path / "text.mp4").write_text("hello " * 100)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        for _ in range(4):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 8000
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for name in ("text", "empty", "folder", "sound", "absent"):
        with pytest.raises(ClipRefused, match="unreadable: ") as refusal:
            look(tmp_path / f"{name}.mp4")
        assert str(tmp_path) not in refusal.value.detail
    with pytest.raises(ClipRefused, match="no video stream"):
        look(tmp_path / "sound.mp4")


def test_a_file_that_ends_before_its_header_says(tmp_path):
    """Matroska keeps its header first, so that a cut copy opens and then runs out."""
    whole = write_levels(tmp_path / "whole.mkv", 36).read_bytes()
    for share in (0.3, 0.6, 0.9):
        short = tmp_path / "short.mkv"
        short.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ClipRefused, match="unreadable"):
            read_cut(short, cut(look(tmp_path / "whole.mkv"), SMALL, 2.0, None, 1))
