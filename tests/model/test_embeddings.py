"""Patches, timestep features and positions, each against diffusers' or torch's own."""

from math import prod

import pytest
import torch
import torch.nn.functional as functional
from diffusers.models.embeddings import get_3d_rotary_pos_embed, get_3d_sincos_pos_embed, get_timestep_embedding

from contentv.model.config import ModelConfig
from contentv.model.correspondence import correspondences, halves_to_pairs, pairs_to_halves
from contentv.model.embeddings import patchify, timestep_features, token_grid, unpatchify
from contentv.model.positions import rope3d, sincos3d

CPU = torch.device("cpu")
GRIDS = [(3, 5, 2), (1, 1, 7), (4, 3, 3)]


def latents(grid, channels=3, batch=2):
    frames, rows, columns = grid
    shape = (batch, channels, frames, 2 * rows, 2 * columns)
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(grid)))


@pytest.mark.parametrize("grid", GRIDS)
def test_unpatchify_undoes_patchify(grid):
    x = latents(grid)
    assert token_grid(x) == grid
    tokens = patchify(x)
    assert tokens.shape == (grid[0] * grid[1] * grid[2], 2, 12)
    assert torch.equal(unpatchify(tokens, grid), x)


def test_a_token_is_its_patch_in_row_column_channel_order():
    x = latents((3, 5, 2))
    token = patchify(x)[(2 * 5 + 3) * 2 + 1, 1]  # frame 2, patch row 3, patch column 1, sample 1
    expected = [x[1, channel, 2, 6 + row, 2 + column] for row in (0, 1) for column in (0, 1) for channel in range(3)]
    assert token.tolist() == [value.item() for value in expected]


@pytest.mark.parametrize("grid", GRIDS)
def test_the_patch_embedding_is_the_published_convolution(grid):
    config = ModelConfig(layers=1, heads=3, head_width=16, text_width=1, pooled_width=1, channels=5)
    x, weight = latents(grid, channels=5), torch.randn(48, 5, 2, 2)
    (entry,) = [each for each in correspondences(config) if each.parameter == "patches.weight"]
    found = functional.linear(patchify(x), entry.join([weight]))
    convolved = functional.conv2d(x.transpose(1, 2).flatten(0, 1), weight, stride=2)  # [B F, D, Y / 2, X / 2]
    expected = convolved.unflatten(0, (2, grid[0])).permute(1, 3, 4, 0, 2).flatten(0, 2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(entry.split(entry.join([weight]))[0], weight)


@pytest.mark.parametrize("rows, columns", [(3, 4), (4, 7)])
def test_odd_latents_are_refused(rows, columns):
    with pytest.raises(ValueError, match=f"latents are {rows} x {columns} .* both even.*multiple of 16 pixels"):
        token_grid(torch.zeros(1, 1, 1, rows, columns))


def test_timestep_features_are_the_published_ones():
    sigma_B = torch.tensor([0.0, 1e-4, 0.37, 0.999, 1.0])
    expected = get_timestep_embedding(1000 * sigma_B, 256, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(timestep_features(sigma_B), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("width", [16, 96, 2432])
@pytest.mark.parametrize("grid", GRIDS)
def test_the_additive_table_is_diffusers(grid, width):
    frames, rows, columns = grid
    expected = get_3d_sincos_pos_embed(width, (columns, rows), frames, 0.5, 1.0).flatten(0, 1)
    torch.testing.assert_close(sincos3d(grid, width, range(prod(grid)), CPU), expected.float(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("head_width", [16, 32, 64, 80])
@pytest.mark.parametrize("grid", GRIDS)
def test_the_rotation_is_cogvideox(grid, head_width):
    frames, rows, columns = grid
    expected = get_3d_rotary_pos_embed(
        head_width, None, (rows, columns), frames, grid_type="slice", max_size=(rows, columns)
    )
    for found, table in zip(rope3d(grid, head_width, range(prod(grid)), CPU), expected, strict=True):
        # Theirs names each angle twice, once for either half of an interleaved pair.
        assert torch.equal(table[:, 0::2], table[:, 1::2])
        torch.testing.assert_close(found, table[:, 0::2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dim", [0, 1])
def test_pairs_and_halves_are_permutations_of_each_other(dim):
    x = torch.arange(8.0)
    assert pairs_to_halves(x).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    matrix = torch.randn(6, 10)
    assert torch.equal(halves_to_pairs(pairs_to_halves(matrix, dim), dim), matrix)
