"""The Wan codec on tiny random VAEs: against diffusers' own passes, and the promises every codec makes."""

import json
import sys
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from contentv.model.codecs import load_codec
from contentv.model.codecs.wan import FOLDER_VARIABLE, Stream, WanCodec, margins, spans
from tests.model.stand_ins import write_wan_vae

TOLERANCE = 1e-4
"""Of the largest value: what wan.py promises for tiles."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("wan") / "vae"


@pytest.fixture(scope="module")
def vae(folder):
    return write_wan_vae(folder)


@pytest.fixture(scope="module")
def codec(vae, folder):
    return WanCodec.load(folder)


def clip(frames: int, height: int, width: int, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(frames)) * 2 - 1


def statistics(vae) -> tuple[torch.Tensor, ...]:
    """Mean and spread of the latents, per channel."""
    return tuple(torch.tensor(vae.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))


def far(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("frames", [1, 5, 13])
def test_whole_frames_are_diffusers_own(vae, codec, frames):
    pixels = clip(frames, 40, 24)
    latents = codec.encode(pixels)
    mean, std = statistics(vae)
    assert latents.shape == (1, 16, 1 + (frames - 1) // 4, 5, 3)
    assert far(latents, (vae.encode(pixels).latent_dist.mode() - mean) / std) < 1e-6
    assert far(codec.decode(latents), vae.decode(latents * std + mean).sample) < 1e-6


def test_published_depth_and_other_statistics_in_another_folder(tmp_path):
    """Two residual blocks a level, as published; a pipeline's folder; a mean and spread of its own."""
    vae = write_wan_vae(tmp_path / "vae", blocks=2, seed=1)
    settings = json.loads((tmp_path / "vae" / "config.json").read_text())
    settings |= {"latents_mean": [0.25] * 16, "latents_std": [0.5] * 15 + [2.0]}
    (tmp_path / "vae" / "config.json").write_text(json.dumps(settings))
    codec, pixels = WanCodec.load(tmp_path, tile=64), clip(5, 136, 16)
    latents = codec.encode(pixels)
    expected = (vae.encode(pixels).latent_dist.mode() - 0.25) / torch.tensor(settings["latents_std"]).view(-1, 1, 1, 1)
    assert far(latents, expected) < TOLERANCE
    assert far(codec.decode(latents), WanCodec.load(tmp_path).decode(latents)) < TOLERANCE


def test_tiles_give_what_the_whole_gives(folder, codec):
    pixels = clip(5, 104, 120)
    tiled = WanCodec.load(folder, tile=32)
    latents = codec.encode(pixels)
    assert len(tiled._tiles(13, 15, 5)) == 4 * 4
    assert far(tiled.encode(pixels), latents) < TOLERANCE
    assert far(tiled.decode(latents), codec.decode(latents)) < TOLERANCE


def test_a_smaller_margin_would_be_seen(folder, codec):
    """The comparison above can fail: two latents less than the layers reach, and it does."""
    pixels, tiled = clip(5, 104, 64), WanCodec.load(folder, tile=32)
    latents = codec.encode(pixels)
    tiled.encoder_margin, tiled.decoder_margin = (margin - 2 for margin in margins(1))
    assert far(tiled.encode(pixels), latents) > TOLERANCE
    assert far(tiled.decode(latents), codec.decode(latents)) > TOLERANCE


@pytest.mark.parametrize("blocks", [1, 2])
def test_margins_are_what_gradients_reach(tmp_path, blocks):
    """An oracle for the arithmetic: which pixels the tiled layers' one latent, which latents one pixel, depend on."""
    write_wan_vae(tmp_path, blocks=blocks)
    codec = WanCodec.load(tmp_path)
    side, middle = 17, 8
    pixels = torch.rand(1, 3, 1, 8 * side, 8 * side, requires_grad=True)
    (features,) = codec._encoder_features(pixels)
    features[..., middle, middle].sum().backward()
    inputs = torch.rand(1, 16, 1, side, side, requires_grad=True)
    outputs = Stream(codec._decoder.tile)(inputs)
    for place in (8 * middle, 8 * middle + 7):
        outputs[..., place, place].sum().backward(retain_graph=True)
    reach = []
    for gradient, scale in ((pixels.grad, 8), (inputs.grad, 1)):
        rows = gradient.abs().sum((0, 1, 2, 4)).view(side, scale).sum(1).nonzero()
        reach.append(int((rows - middle).abs().max()))
    assert tuple(reach) == margins(blocks)


def test_spans_cover_an_axis_once_and_see_their_margin():
    for length, tile in ((1, 4), (4, 4), (9, 4), (13, 5)):
        parts = spans(length, tile, 2)
        assert [place for part in parts for place in range(length)[part.own()]] == list(range(length))
        for part in parts:
            assert part.end - part.begin <= tile
            assert list(range(length)[part.seen()])[part.kept()] == list(range(length)[part.own()])
            assert part.low in (0, part.begin - 2) and part.high in (length, part.end + 2)


def test_encoding_and_decoding_are_causal(folder):
    pixels = clip(13, 48, 80)
    for codec in (WanCodec.load(folder), WanCodec.load(folder, tile=40)):
        latents = codec.encode(pixels)
        assert torch.equal(codec.encode(pixels[:, :, :1])[:, :, 0], latents[:, :, 0])
        assert torch.equal(codec.encode(pixels[:, :, :9]), latents[:, :, :3])
        assert torch.equal(codec.decode(latents[:, :, :2]), codec.decode(latents)[:, :, :5])


def test_a_clip_does_not_depend_on_its_company(codec):
    pixels = clip(5, 16, 24, batch=3)
    latents = codec.encode(pixels)
    assert latents.shape[0] == 3 and torch.equal(codec.encode(pixels[1:2])[0], latents[1])
    assert torch.equal(codec.encode(pixels), latents)
    assert torch.equal(codec.decode(latents[2:])[0], codec.decode(latents)[2])


def test_decoding_is_differentiable_also_in_tiles(folder, codec):
    gradients = []
    for each in (codec, WanCodec.load(folder, tile=32)):
        latents = torch.randn(1, 16, 2, 9, 3, generator=torch.Generator().manual_seed(2)).requires_grad_()
        each.decode(latents).square().mean().backward()
        gradients.append(latents.grad)
    assert far(gradients[1], gradients[0]) < TOLERANCE


class LiveBytes(TorchDispatchMode):
    """The largest sum of the tensors made under it that are alive at once. On the meta device this costs no work."""

    def __init__(self, given: torch.Tensor):
        super().__init__()
        self.live = self.peak = 0
        self.known = weakref.WeakSet([given.untyped_storage()])

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self.known:
                storage = tensor.untyped_storage()
                self.known.add(storage)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._free, storage.nbytes())
        return result

    def _free(self, size: int) -> None:
        self.live -= size


def peak_bytes(codec: WanCodec, part: str, frames: int, height: int, width: int) -> int:
    """Beyond the input and the result."""
    if part == "encode":
        given = torch.empty(1, 3, frames, height, width, device="meta")
    else:
        given = torch.empty(1, 16, 1 + (frames - 1) // 4, height // 8, width // 8, device="meta")
    codec.vae.to("meta")
    with LiveBytes(given) as count:
        result = getattr(codec, part)(given)
    return count.peak - result.nbytes


@pytest.mark.parametrize("part", ["encode", "decode"])
def test_memory_grows_neither_with_length_nor_with_size(vae, folder, part):
    whole, tiled = WanCodec.load(folder), WanCodec.load(folder, tile=128)
    # From the third group on, every convolution remembers all it ever will.
    short = peak_bytes(whole, part, 9, 128, 128)
    # What grows with the length, tiles or not: some tensors of the latents' own size.
    latents = 16 * 4 * (128 // 8) * (128 // 8) * (21 - 9) // 4
    assert peak_bytes(whole, part, 21, 128, 128) - short < 6 * latents < 0.05 * short
    wide = peak_bytes(whole, part, 9, 128, 512)
    assert wide > 3.5 * short
    strips = peak_bytes(tiled, part, 9, 128, 512)
    assert strips < 0.5 * wide
    assert peak_bytes(tiled, part, 21, 128, 512) - strips < 6 * 4 * latents


def test_saving_writes_a_reference_that_is_checked(vae, folder, codec, tmp_path, monkeypatch):
    codec.save(tmp_path / "codec")
    assert sum(path.stat().st_size for path in (tmp_path / "codec").iterdir()) < 1000
    again = load_codec(tmp_path / "codec")
    assert again.kind == "wan" and again.identity == codec.identity == load_codec(folder).identity
    moved, other = tmp_path / "moved", tmp_path / "other"
    folder.rename(moved)
    try:
        with pytest.raises(ValueError, match=f"{FOLDER_VARIABLE}.*those weights now"):
            load_codec(tmp_path / "codec")
        monkeypatch.setenv(FOLDER_VARIABLE, str(moved))
        assert load_codec(tmp_path / "codec").identity == codec.identity
        write_wan_vae(other, seed=5)
        monkeypatch.setenv(FOLDER_VARIABLE, str(other))
        with pytest.raises(ValueError, match="refers to"):
            load_codec(tmp_path / "codec")
    finally:
        moved.rename(folder)


def test_identity_is_of_weights_and_statistics_not_of_their_file(vae, folder, codec, tmp_path):
    vae.save_pretrained(tmp_path / "again")
    assert WanCodec.load(tmp_path / "again").identity == codec.identity
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    config["latents_std"][3] *= 2
    (tmp_path / "again" / "config.json").write_text(json.dumps(config))
    assert WanCodec.load(tmp_path / "again").identity != codec.identity


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_in_several_files_and_in_half_precision(vae, codec, tmp_path, dtype):
    write_wan_vae(tmp_path).to(dtype).save_pretrained(tmp_path / "pieces", max_shard_size="100KB")
    assert len(list((tmp_path / "pieces").glob("*-of-*.safetensors"))) > 1
    found = WanCodec.load(tmp_path / "pieces")
    assert {weight.dtype for weight in found.vae.parameters()} == {torch.float32}
    assert (found.identity == codec.identity) == (dtype == torch.float32)
    rounded = {name: weight.to(dtype).float() for name, weight in vae.state_dict().items()}
    assert all(torch.equal(weight, rounded[name]) for name, weight in found.vae.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z_dim": 48}, "latents_mean.*z_dim numbers"),
        ({"is_residual": True}, "is_residual = True; codec wan reads False"),
        ({"dim_mult": [1, 2, 4]}, "four positive"),
        ({"temperal_downsample": [True, True, True]}, "two of them true"),
        ({"latents_std": [0] * 16}, "latents_std"),
        ({"base_dim": 16}, "conv_in.*config.json says"),
        ({"num_res_blocks": 2}, "absent"),
        ({"novelty": 1}, "no such key"),
        ({"_class_name": "AutoencoderKL"}, "found class 'AutoencoderKL'"),
    ],
)
def test_other_vaes_are_refused_by_name(vae, folder, tmp_path, change, message):
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    (tmp_path / "diffusion_pytorch_model.safetensors").symlink_to(folder / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match=message):
        WanCodec.load(tmp_path)


def test_broken_folders_and_a_missing_diffusers_say_what_to_do(vae, folder, codec, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="config.json: not readable"):
        WanCodec.load(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    content = (folder / "diffusion_pytorch_model.safetensors").read_bytes()
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="safetensors: truncated or not.*download them again"):
        load_codec(tmp_path)
    with pytest.raises(ValueError, match="multiple of 8"):
        WanCodec.load(folder, tile=100)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match="pip install diffusers"):
        WanCodec.load(folder)


@pytest.mark.parametrize("shape", [(3, 2, 8, 8), (3, 5, 12, 8), (3, 0, 8, 8), (4, 5, 8, 8)])
def test_sizes_a_codec_would_have_to_pad_are_refused(codec, shape):
    with pytest.raises(ValueError, match="multiples of 8|1 \\+ 4k"):
        codec.encode(torch.zeros(1, *shape))
    with pytest.raises(ValueError, match="1 \\+ k"):
        codec.decode(torch.zeros(1, 15, 2, 4, 4))
