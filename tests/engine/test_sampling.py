"""Sampling against Euler's method written out, and the refusal of anything a run or a folder was not made with."""

from dataclasses import replace

import pytest
import torch

from contentv.engine.checkpoints import CheckpointFolder
from contentv.engine.sampling import PublishedOptions, find_checkpoint, open_published, open_run, sample_latents
from contentv.kernels.philox import Stream, normal, words
from contentv.model.config import FlowConfig
from contentv.parallel.checkpoint import plain_tensors
from contentv.parallel.config import ParallelConfig
from contentv.parallel.mesh import build_mesh
from tests.engine.real_run import CAPTIONS, SIZE, STEPS

PROMPT = "red waves at night"


@pytest.fixture(scope="module")
def found(real_run):
    return find_checkpoint(real_run)


@pytest.fixture(scope="module")
def source(found):
    return open_run(found, "ema")


@pytest.fixture(scope="module")
def published(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    source.model.save_pretrained(folder)
    return folder


@torch.no_grad()
def plain_euler(source, config, prompt, negative, guidance):
    """One video: the straight path from noise to data in equal steps, each caption in a forward pass of its own."""
    first, second, _, _ = words(config.seed, torch.arange(16 * 2 * 4 * 6), 0, 0, Stream.SAMPLING)
    latents = normal(first, second).view(1, 16, 2, 4, 6)
    for step in range(config.steps):
        sigma = torch.tensor([1 - step / config.steps])
        wanted, unwanted = (
            source.model.velocity(latents, sigma, *source.text.encode([caption])) for caption in (prompt, negative)
        )
        velocity = wanted if guidance is None else unwanted + guidance * (wanted - unwanted)
        latents = latents - velocity / config.steps
    return latents


def close(one, other):
    """Rounding only: a different velocity moves latents by far more."""
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_guidance_is_classifier_free_guidance(source, found):
    config = found.config.sample
    close(sample_latents(source, [PROMPT], config), plain_euler(source, config, PROMPT, "", 2.0))


def test_guidance_of_one_is_the_conditional_model(source, found):
    config = replace(found.config.sample, guidance=1.0)
    close(sample_latents(source, [PROMPT], config), plain_euler(source, config, PROMPT, "", None))


def test_the_negative_prompt_takes_the_empty_captions_place(source, found):
    config = replace(found.config.sample, guidance=5.0)
    sampled = sample_latents(source, [PROMPT], config, CAPTIONS[1])
    close(sampled, plain_euler(source, config, PROMPT, CAPTIONS[1], 5.0))
    assert (sampled - sample_latents(source, [PROMPT], config)).abs().max() > 1e-2


def test_a_video_depends_on_seed_and_place_alone(source, found):
    config = found.config.sample
    alone = sample_latents(source, [PROMPT], config)
    assert torch.equal(alone, sample_latents(source, [PROMPT], config))
    close(sample_latents(source, [PROMPT, CAPTIONS[0]], config)[:1], alone)
    assert (sample_latents(source, [PROMPT], replace(config, seed=1)) - alone).abs().max() > 0.5


def test_a_run_means_its_last_checkpoint(source, found, real_run):
    last, earlier = (CheckpointFolder(real_run).path(step) for step in (STEPS, 3))
    assert found.folder == last
    config = found.config.sample
    expected = sample_latents(source, [PROMPT], config)
    assert torch.equal(sample_latents(open_run(find_checkpoint(last), "ema"), [PROMPT], config), expected)
    assert not torch.equal(sample_latents(open_run(find_checkpoint(earlier), "ema"), [PROMPT], config), expected)
    assert find_checkpoint(real_run.parent) is None


@pytest.mark.parametrize(("kind", "prefix"), [("ema", "optimizer.state.ema."), ("raw", "")])
def test_averaged_and_raw_weights_are_those_of_the_checkpoint(found, kind, prefix):
    stored = plain_tensors(found.verify(mesh := build_mesh(ParallelConfig())), mesh)
    model = open_run(found, kind).model
    parameters = dict(model.named_parameters())
    assert len(parameters) > 50
    for name, parameter in parameters.items():
        expected = next(value for key, value in stored.items() if key == prefix + name)
        assert torch.equal(parameter, expected.view_as(parameter)), name
    other = {"ema": "", "raw": "optimizer.state.ema."}[kind]
    assert any(not torch.equal(parameters[name], stored[other + name].view_as(parameters[name])) for name in parameters)


def options(real_run, **changes):
    codec = CheckpointFolder(real_run).path(STEPS) / "codec"
    return PublishedOptions(**{"codec": str(codec), "text": "minilm", "clip_size": tuple(SIZE), **changes})


def test_published_weights_sample_what_the_run_samples(source, found, published, real_run):
    other = open_published(published, options(real_run), found.config.flow)
    config = found.config.sample
    expected = source.codec.decode(sample_latents(source, [PROMPT], config))
    assert torch.equal(other.codec.decode(sample_latents(other, [PROMPT], config)), expected)
    assert tuple(expected.shape) == (1, 3, *SIZE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"codec": None}, "give --codec FOLDER and --text KIND"),
        ({"text": None}, "give --codec FOLDER and --text KIND"),
        ({"codec": "nowhere"}, "codec 'nowhere' is neither wan nor a folder"),
        ({"text": "t5"}, "text encoder 't5' is not known; known are minilm"),
        ({"position": "sincos3d"}, "position is rope3d, but sincos3d was asked for"),
        ({"clip_size": (6, 32, 48)}, "6 frames"),
        ({"clip_size": (5, 33, 48)}, "33 x 48"),
        ({"clip_size": (5, 32, 40)}, r"32 x 40 pixels .* multiples of 16"),
    ],
)
def test_published_weights_refuse_what_they_cannot_use(published, real_run, changes, words):
    with pytest.raises(ValueError, match=words):
        open_published(published, options(real_run, **changes), FlowConfig())


def test_text_of_another_width_is_refused(real_run, tmp_path):
    from contentv.model.config import ModelConfig
    from contentv.model.cost import parameter_shapes
    from contentv.model.published import write_tensors

    config = ModelConfig(layers=1, heads=1, head_width=16, text_width=24, pooled_width=384, position="rope3d")
    shapes = parameter_shapes(config)
    write_tensors(tmp_path, ((name, torch.zeros(shape)) for name, shape in shapes.items()), config)
    with pytest.raises(ValueError, match="takes text tokens 24 wide, but text encoder minilm gives 384"):
        open_published(tmp_path, options(real_run), FlowConfig())


def test_a_codec_or_text_encoder_that_is_not_the_runs_is_refused(found):
    facts = found.facts
    with pytest.raises(ValueError, match="was trained with codec ffff"):
        open_run(replace(found, facts=replace(facts, codec_identity="f" * 64)), "ema")
    with pytest.raises(ValueError, match="was trained with text encoder minilm ffff.*install the former"):
        open_run(replace(found, facts=replace(facts, text=replace(facts.text, identity="f" * 64))), "ema")
