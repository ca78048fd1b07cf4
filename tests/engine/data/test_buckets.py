"""Buckets by duration and aspect ratio."""

import pytest

from contentv.engine.data.buckets import Buckets
from contentv.engine.data.manifest import Bucket
from contentv.engine.data.refusal import ClipRefused

PUBLISHED = Buckets(frames=(125, 61, 1), height=432, width=768, fps=24)


@pytest.mark.parametrize(
    ("seconds", "height", "width", "expected"),
    [
        (5.2, 1080, 1920, Bucket(125, 432, 768)),
        (124 / 24, 1080, 1920, Bucket(125, 432, 768)),  # exactly enough
        (5.1, 1080, 1920, Bucket(61, 432, 768)),
        (60.0, 1920, 1080, Bucket(125, 768, 432)),
        (9.0, 960, 1280, Bucket(125, 496, 672)),
        (9.0, 600, 600, Bucket(125, 576, 576)),
        (0.0, 4000, 1000, Bucket(1, 816, 400)),
    ],
)
def test_the_longest_that_is_filled_in_the_nearest_shape(seconds, height, width, expected):
    assert PUBLISHED.choose(seconds, height, width) == expected


def test_shapes_hold_the_same_pixels_in_whole_patches():
    sizes = PUBLISHED.sizes()
    assert len(sizes) == 9 and sizes[0] == (432, 768)
    for height, width in sizes:
        assert height % 16 == width % 16 == 0
        assert height * width == pytest.approx(432 * 768, rel=0.03)
        assert (width, height) in sizes


def test_a_preferred_size_of_its_own_shape_is_used():
    assert Buckets(frames=(5,), height=32, width=160, fps=8).choose(2.0, 100, 500) == Bucket(5, 32, 160)


def test_what_no_bucket_takes():
    videos = Buckets(frames=(125, 61), height=432, width=768, fps=24)
    with pytest.raises(ClipRefused, match=r"too short: 2\.40 s .* 61 frames at 24 a second need 2\.50"):
        videos.choose(2.4, 1080, 1920)
    with pytest.raises(ClipRefused, match="too small: 240 x 426 pixels; they would have to grow to 432 x 768"):
        videos.choose(9.0, 240, 426)


@pytest.mark.parametrize("change", [{"frames": ()}, {"frames": (4,)}, {"frames": (-3,)}, {"height": 40}, {"width": 0},
                                    {"fps": 0.0}, {"fps": float("nan")}])  # fmt: skip
def test_impossible_settings(change):
    with pytest.raises(ValueError, match="--"):
        Buckets(**{"frames": (5,), "height": 32, "width": 48, "fps": 8.0} | change)
