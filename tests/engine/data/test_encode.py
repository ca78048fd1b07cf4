"""From a video file to shards: what is stored is what the stored codec says, and what it decodes to."""

import math

import pytest
import torch

from contentv.engine.data.clips import Clip, ClipManifest, FrameRange
from contentv.engine.data.encode import (
    codec_psnr,
    encode_clips,
    is_encoded,
    mean_codec_psnr,
    source_of,
)
from contentv.engine.data.manifest import Bucket
from contentv.engine.data.shards import ShardDataset
from contentv.engine.data.windows import read_windows
from contentv.engine.video import write_mp4
from contentv.model.codecs import load_codec


class FakeText:
    """Features that say which caption they belong to."""

    kind, identity, tokens, width, pooled_width = "fake", "text-identity", 2, 4, 3

    def encode(self, captions):
        lengths = torch.tensor([float(len(caption)) for caption in captions])
        return lengths[:, None, None].expand(-1, 2, 4).clone(), lengths[:, None].expand(-1, 3).clone()


@pytest.fixture(scope="module")
def clips() -> ClipManifest:
    ranges = {
        "train": FrameRange(first=0, stop=20, windows=3),
        "held_out": FrameRange(first=20, stop=30, windows=1),
    }
    made = [
        Clip(name=name, caption=f"a {name} clip", file=f"{name}.mp4", stride=2, **ranges) for name in ("red", "green")
    ]
    return ClipManifest(bucket=Bucket(5, 24, 40), packages=(), clips=tuple(made))


@pytest.fixture(scope="module")
def folder(clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encode")
    generator = torch.Generator().manual_seed(0)
    for number, clip in enumerate(clips.clips):
        coarse = torch.rand(1, 3, 8, 6, 10, generator=generator) * 2 - 1
        pixels = torch.nn.functional.interpolate(coarse, (32, 48, 80), mode="trilinear")[0]
        pixels[1 - number] = -1
        write_mp4(folder / clip.file, pixels, fps=8)
    encode_clips(clips, folder, folder / "shards", FakeText())
    return folder


def test_shards_hold_every_window_as_the_saved_codec_encodes_it(clips, folder):
    codec = load_codec(folder / "shards" / "codec")
    for split, expected in (("train", 6), ("held_out", 2)):
        dataset = ShardDataset(folder / "shards", split)
        dataset.verify()
        assert dataset.codec_identity == codec.identity
        windows = [window for window in read_windows(clips, folder) if window.split == split]
        batch = dataset.read([window.sample for window in windows])
        assert len(windows) == expected and batch.captions == tuple(window.caption for window in windows)
        pixels = torch.stack([window.pixels_3FYX for window in windows])
        torch.testing.assert_close(batch.latents_BCFYX, codec.encode(pixels), rtol=1e-4, atol=1e-4)
        assert batch.tokens_BTW[:, 0, 0].tolist() == [float(len(caption)) for caption in batch.captions]
        for window in windows:
            facts = dataset.facts(window.sample)
            assert (facts["clip"], facts["first_frame"]) == (window.clip, window.first_frame)


def test_psnr_is_its_definition(clips, folder):
    codec = load_codec(folder / "shards" / "codec")
    values = []
    for window in read_windows(clips, folder):
        decoded = codec.decode(codec.encode(window.pixels_3FYX[None]))[0].double().numpy()
        error = (((decoded + 1) / 2 - (window.pixels_3FYX.double().numpy() + 1) / 2) ** 2).mean()
        assert codec_psnr(codec, window.pixels_3FYX) == pytest.approx(10 * math.log10(1 / error), abs=1e-3)
        if window.split == "train":
            values.append(10 * math.log10(1 / error))
    assert mean_codec_psnr(folder / "shards") == pytest.approx(sum(values) / len(values), abs=1e-3)
    assert mean_codec_psnr(folder / "shards") > 25


def test_what_is_encoded_is_known_again_until_it_changes(clips, folder):
    source = source_of(clips, FakeText.kind)
    assert is_encoded(folder / "shards", source)
    assert not is_encoded(folder / "shards", source_of(clips, "another"))
    assert not is_encoded(folder / "absent", source)
    shard = next((folder / "shards").glob("held_out*.tar"))
    content = bytearray(shard.read_bytes())
    content[700] ^= 255
    shard.write_bytes(content)
    assert not is_encoded(folder / "shards", source)
