"""The embedded codec against numpy's own principal components, and the promises every codec makes."""

import numpy as np
import pytest
import torch

from contentv.model.clip_size import latent_size
from contentv.model.codecs import load_codec
from contentv.model.codecs.pca import PCACodec, decoder_input, from_blocks, to_blocks
from contentv.model.codecs.pca_fit import fit


def windows(count: int = 5, frames: int = 9, height: int = 24, width: int = 40) -> list[torch.Tensor]:
    """Moving smooth waves, a few frequencies each: video-like, and with more than 16 components."""
    generator = torch.Generator().manual_seed(3)
    clips = []
    for _ in range(count):
        frame, row, column = (torch.arange(n).float() for n in (frames, height, width))
        clip = torch.zeros(3, frames, height, width)
        for _ in range(9):
            speed, down, right, phase = (
                torch.randn(4, generator=generator) * torch.tensor([0.3, 0.5, 0.5, 3.0])
            ).tolist()
            angle = speed * frame[:, None, None] + down * row[None, :, None] + right * column[None, None, :] + phase
            clip += torch.randn(3, 1, 1, 1, generator=generator) * torch.sin(angle)
        clips.append((clip / 6).clamp(-1, 1))
    return clips


@pytest.fixture(scope="module")
def codec() -> PCACodec:
    return fit(windows)


def test_blocks_return_where_they_came_from_at_odd_sizes():
    pixels = torch.randn(2, 3, 12, 24, 56)
    assert torch.equal(from_blocks(to_blocks(pixels, 4), 4), pixels)
    block = to_blocks(pixels, 4)[1, 2, 1, 5].reshape(3, 4, 8, 8)
    assert torch.equal(block, pixels[1, :, 8:12, 8:16, 40:48])


def test_latents_span_what_numpy_finds(codec):
    """The projection's subspace, and its scale, against a singular value decomposition in float64."""
    pixels = torch.stack(windows())
    for part, blocks in (("first", to_blocks(pixels[:, :, :1], 1)), ("later", to_blocks(pixels[:, :, 1:], 4))):
        rows = blocks.flatten(0, 3).double().numpy()
        _, singular, vectors = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
        expected = (vectors[:16].T / singular[:16]) @ (vectors[:16] / singular[:16, None]) * len(rows)
        analysis = codec.tensors[f"{part}.analysis"].double().numpy()
        assert np.linalg.norm(analysis @ analysis.T - expected) < 1e-4 * np.linalg.norm(expected)


def test_latents_are_normalised_over_the_training_windows(codec):
    latents = codec.encode(torch.stack(windows()))
    assert latents.shape == (5, 16, 3, 3, 5)
    for part in (latents[:, :, :1], latents[:, :, 1:]):
        assert part.mean((0, 2, 3, 4)).abs().max() < 1e-4
        assert (part.var((0, 2, 3, 4), correction=0) - 1).abs().max() < 1e-3


def test_decoder_beats_the_best_linear_map_of_single_latents(codec):
    """The optimum without neighbours is the transpose of the bases: the decoder must be better than that."""
    pixels = torch.stack(windows())
    decoded = codec.decode(codec.encode(pixels))
    assert decoded.shape == pixels.shape
    for part, frames, clip in (("first", 1, slice(0, 1)), ("later", 4, slice(1, None))):
        analysis = codec.tensors[f"{part}.analysis"]
        blocks = to_blocks(pixels[:, :, clip], frames)
        mean = codec.tensors[f"{part}.mean"]
        plain = (blocks - mean) @ analysis @ torch.linalg.pinv(analysis) + mean
        error = (decoded[:, :, clip] - pixels[:, :, clip]).square().mean()
        assert error < 0.8 * (from_blocks(plain, frames) - pixels[:, :, clip]).square().mean()


def test_decoder_input_lists_the_neighbours_and_repeats_the_border():
    latents = torch.randn(2, 16, 3, 5, 7)
    weight, bias = torch.randn(144, 11), torch.randn(11)
    inputs = decoder_input(latents, weight, bias)
    neighbours = np.pad(latents.numpy(), ((0, 0), (0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")[1, :, 2, 4:7, 0:3]
    assert np.array_equal(inputs[1, 2, 4, 0, :144].reshape(16, 3, 3).numpy(), neighbours)
    random = np.maximum(neighbours.reshape(-1) @ weight.numpy() + bias.numpy(), 0)
    np.testing.assert_allclose(inputs[1, 2, 4, 0, 144:-1].numpy(), random, rtol=1e-4, atol=1e-4)
    assert (inputs[..., -1] == 1).all()


def test_encoding_and_decoding_are_causal(codec):
    pixels = torch.stack(windows(count=2, frames=13))
    latents = codec.encode(pixels)
    torch.testing.assert_close(codec.encode(pixels[:, :, :1])[:, :, 0], latents[:, :, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(codec.encode(pixels[:, :, :5]), latents[:, :, :2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(codec.decode(latents)[:, :, :5], codec.decode(latents[:, :, :2]), rtol=1e-4, atol=1e-4)


def test_still_pictures_keep_their_latent(codec):
    """Bases are matched across time: a later channel is the same feature as the first frame's, sign included."""
    latents = codec.encode(torch.stack(windows()))
    agreement = (latents[:, :, 0] * latents[:, :, 1]).mean((0, 2, 3))
    assert (agreement > -0.05).all() and agreement[:4].min() > 0.2


def test_fitting_and_saving_repeat_to_the_bit(codec, tmp_path):
    assert fit(windows).identity == codec.identity
    codec.save(tmp_path)
    again = load_codec(tmp_path)
    assert again.identity == codec.identity
    assert all(torch.equal(again.tensors[name], codec.tensors[name]) for name in codec.tensors)


def test_altered_or_foreign_codecs_are_refused(codec, tmp_path):
    codec.save(tmp_path)
    other = PCACodec(codec.tensors | {"later.mean": codec.tensors["later.mean"] + 1})
    assert other.identity != codec.identity
    other.save(tmp_path / "other")
    (tmp_path / "codec.safetensors").write_bytes((tmp_path / "other" / "codec.safetensors").read_bytes())
    with pytest.raises(ValueError, match="identity"):
        load_codec(tmp_path)
    (tmp_path / "codec.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="codec.safetensors"):
        load_codec(tmp_path)
    with pytest.raises(ValueError, match="no readable codec"):
        load_codec(tmp_path / "absent")


@pytest.mark.parametrize("shape", [(2, 8, 8), (4, 8, 8), (5, 12, 8), (5, 8, 12), (0, 8, 8)])
def test_sizes_a_codec_would_have_to_pad_are_refused(codec, shape):
    with pytest.raises(ValueError, match="multiples of 8|1 \\+ 4k"):
        codec.encode(torch.zeros(1, 3, *shape))


def test_latent_size_counts():
    assert latent_size(1, 8, 16) == (1, 1, 2)
    assert latent_size(125, 432, 768) == (32, 54, 96)
