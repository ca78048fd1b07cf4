"""The whole model: exactly diffusers' parameters at 8B, its initialisations, and recomputation that changes no bit."""

from dataclasses import replace
from math import prod

import pytest
import torch

from contentv.kernels.registry import choose
from contentv.model.config import ModelConfig, contentv_8b, quickstart
from contentv.model.correspondence import correspondences
from contentv.model.cost import count_parameters, parameter_shapes
from contentv.model.mmdit import MMDiT, build
from contentv.model.weights import initialise, published_tensors
from contentv.parallel.config import ParallelConfig
from contentv.parallel.mesh import build_mesh
from contentv.tests.model.published_oracle import published_transformer

KERNELS = {dtype: choose("cpu", dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
SMALL = ModelConfig(layers=3, heads=2, head_width=32, text_width=40, pooled_width=24, position="rope3d")


@pytest.fixture(scope="module")
def mesh():
    return build_mesh(ParallelConfig())


def batch(config: ModelConfig, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """latents, sigma, text, pooled."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (2, config.channels, 3, 4, 6), (2,), (2, 5, config.text_width), (2, config.pooled_width)
    latents, sigma, text, pooled = (torch.randn(shape, generator=generator) for shape in shapes)
    return latents, sigma.sigmoid(), text, pooled


def initialised(config: ModelConfig, mesh, seed: int, **options) -> MMDiT:
    model = build(config, mesh, KERNELS[options.get("dtype", torch.float32)], **options)
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))  # whatever stays unset shows
    initialise(model, config, seed)
    return model


def published(model: MMDiT) -> dict[str, torch.Tensor]:
    parameters = dict(model.named_parameters())
    return {name: tensor.detach() for name, tensor in published_tensors(model.config, parameters.__getitem__)}


@pytest.mark.parametrize("config", [contentv_8b(), quickstart(), SMALL], ids=["contentv_8b", "quickstart", "small"])
def test_the_parameters_are_exactly_diffusers(config, mesh):
    with torch.device("meta"):
        ours = dict(MMDiT(config, mesh, KERNELS[torch.float32]).named_parameters())
        theirs = dict(published_transformer(config).named_parameters())
    assert parameter_shapes(config) == {name: tuple(tensor.shape) for name, tensor in theirs.items()}
    for entry in correspondences(config):
        joined = entry.join([theirs.pop(name) for name in entry.published])
        assert joined.shape == ours.pop(entry.parameter).shape, entry.parameter
    assert not theirs and not ours


def test_counts_are_those_of_diffusers():
    for config in (contentv_8b(), quickstart(), SMALL):
        with torch.device("meta"):
            theirs = published_transformer(config)
        assert count_parameters(config) == sum(parameter.numel() for parameter in theirs.parameters())
    # 38 blocks of 38 x 64: the report's 8B.
    assert 8.0e9 < count_parameters(contentv_8b()) < 8.2e9
    assert isinstance(count_parameters(quickstart()), int)


def test_building_on_the_meta_device_takes_no_memory(mesh):
    with torch.device("meta"):
        model = MMDiT(contentv_8b(), mesh, KERNELS[torch.bfloat16], dtype=torch.bfloat16)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_adaln_zero_begins_with_zero_velocity(mesh):
    model = initialised(SMALL, mesh, seed=1)
    assert not model(*batch(SMALL)).any()
    tensors = published(model)
    for name, tensor in tensors.items():
        is_zero = name.endswith(".bias") or ".norm1" in name or name.startswith(("norm_out", "proj_out"))
        assert (not tensor.any()) == is_zero, name
    gain = tensors["transformer_blocks.1.attn.norm_added_k.weight"]
    assert torch.equal(gain, torch.ones(32))
    for name in ("transformer_blocks.0.ff.net.0.proj.weight", "pos_embed.proj.weight"):
        outputs, inputs = tensors[name].shape[0], prod(tensors[name].shape[1:])
        bound = (6 / (inputs + outputs)) ** 0.5  # Glorot's
        assert 0.98 * bound < tensors[name].abs().max() <= bound
        assert tensors[name].std() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_normal_leaves_no_path_shut(mesh):
    model = initialised(replace(SMALL, initialisation="normal"), mesh, seed=1)
    for name, tensor in published(model).items():
        if name.endswith(".bias"):
            assert not tensor.any(), name
        elif tensor.dim() == 1:
            assert torch.equal(tensor, torch.ones_like(tensor)), name
        else:
            count = tensor.numel()
            assert abs(tensor.std() / 0.02 - 1) < 5 / (2 * count) ** 0.5, name
            assert abs(tensor.mean()) < 5 * 0.02 / count**0.5, name
    assert model(*batch(SMALL)).norm() > 0


@pytest.mark.parametrize("initialisation", ["adaln_zero", "normal"])
def test_weights_are_functions_of_seed_and_name_alone(mesh, initialisation):
    config = replace(SMALL, initialisation=initialisation)
    once, again, other = (published(initialised(config, mesh, seed)) for seed in (3, 3, 4))
    longer = published(initialised(replace(config, layers=4), mesh, seed=3))
    drawn = [name for name, tensor in once.items() if tensor.dim() > 1 and tensor.any()]
    for name, tensor in once.items():
        assert torch.equal(tensor, again[name]), name
        if longer[name].shape == tensor.shape:
            assert torch.equal(tensor, longer[name]), name
    for name in drawn:
        assert not torch.equal(once[name], other[name]), name
    corners = {(tuple(once[name].shape), once[name].flatten()[0].item()) for name in drawn}
    assert len(corners) == len(drawn)  # no two matrices share their draw


@pytest.mark.parametrize("position", ["sincos3d", "rope3d"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputing_changes_no_bit_of_loss_and_gradients(mesh, dtype, position):
    config = replace(SMALL, initialisation="normal", position=position)
    results = []
    for recomputed in ("none", "full", "selective"):
        model = initialised(config, mesh, seed=5, dtype=dtype, recomputed=recomputed)
        calls = []
        model.blocks["1"].text.up.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        inputs = batch(config)
        loss = model(*inputs).float().square().mean()
        loss.backward()
        with torch.no_grad():
            model(*inputs)
        # Where it recomputes, once more in backward, and never without gradients.
        assert len(calls) == (2 if recomputed == "none" else 3)
        results.append((loss, {name: parameter.grad for name, parameter in model.named_parameters()}))
    loss, gradients = results[0]
    for loss_again, gradients_again in results[1:]:
        assert torch.equal(loss, loss_again)
        for name, gradient in gradients.items():
            assert torch.equal(gradient, gradients_again[name]), name
            assert gradient.any() or name.startswith("blocks.2.text"), name


def test_bfloat16_follows_float32(mesh):
    config = replace(SMALL, initialisation="normal")
    wide = initialised(config, mesh, seed=5)
    narrow = initialised(config, mesh, seed=5, dtype=torch.bfloat16)
    expected, found = wide(*batch(config)), narrow(*batch(config))
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() / expected.norm() < 0.03
