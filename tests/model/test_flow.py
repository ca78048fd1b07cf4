"""Flow matching: densities against closed forms, randomness that knows no batch, the loss, and Euler's way back."""

import math
from statistics import NormalDist

import pytest
import torch

from contentv.kernels.registry import choose
from contentv.model.config import FlowConfig
from contentv.model.embeddings import patchify
from contentv.model.flow import Caption, Clips, FlowMatching, Guidance, initial_noise, sample, shifted

KERNELS = choose("cpu", "auto")
EMPTY = Caption(torch.full((3, 4), -7.0), torch.full((5,), -9.0))
MANY = 20_000


def clips(ids, grid=(1, 2, 2), channels=1) -> Clips:
    """Latents and captions that are functions of the sample id."""

    def draw(sample, stream, *shape):
        return torch.randn(shape, generator=torch.Generator().manual_seed(2 * sample + stream))

    latents = torch.stack([draw(sample, 0, channels, *grid) for sample in ids])
    tokens = torch.stack([draw(sample, 1, 3, 4) for sample in ids])
    return Clips(latents, Caption(tokens, tokens.mean(1).repeat(1, 2)[:, :5]), torch.tensor(ids))


def many() -> Clips:
    latents = torch.zeros(1, 1, 1, 2, 2).expand(MANY, 1, 1, 2, 2)
    caption = Caption(torch.zeros(MANY, 3, 4), torch.zeros(MANY, 5))
    return Clips(latents, caption, torch.arange(MANY))


def flow(seed=11, **config) -> FlowMatching:
    return FlowMatching(FlowConfig(**config), KERNELS, seed, EMPTY)


def assert_share(events: torch.Tensor, probability: float) -> None:
    """Five standard deviations of a binomial: a right density fails once in a million drawings of the seed."""
    allowed = 5 * math.sqrt(probability * (1 - probability) / len(events))
    assert abs(events.double().mean().item() - probability) <= allowed


@pytest.mark.parametrize("quantile", [0.05, 0.3, 0.5, 0.81, 0.99])
@pytest.mark.parametrize("mean, std", [(0.0, 1.0), (-0.7, 0.5), (1.2, 1.8)])
def test_the_logit_normal_density_has_its_quantiles(quantile, mean, std):
    sigma_B = flow(density="logit_normal", mean=mean, std=std).noise_levels(many(), step=3)
    below = 1 / (1 + math.exp(-NormalDist(mean, std).inv_cdf(quantile)))
    assert_share(sigma_B < below, quantile)


@pytest.mark.parametrize("quantile", [0.01, 0.25, 0.5, 0.9])
def test_the_uniform_density_has_its_quantiles(quantile):
    sigma_B = flow(density="uniform").noise_levels(many(), step=3)
    assert sigma_B.dtype == torch.float32 and sigma_B.min() > 0 and sigma_B.max() < 1
    assert_share(sigma_B < quantile, quantile)


def test_steps_and_seeds_draw_anew():
    levels = [flow(seed).noise_levels(many(), step) for seed, step in ((1, 1), (1, 2), (2, 1))]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        correlation = torch.corrcoef(torch.stack([levels[one], levels[other]]))[0, 1]
        assert abs(correlation) < 5 / math.sqrt(MANY)


@pytest.mark.parametrize(
    "shift, reference, grid, expected",
    [(1.0, 0, (3, 4, 6), 1.0), (3.0, 0, (3, 4, 6), 3.0), (3.0, 18, (3, 4, 6), 3.0), (2.0, 2, (1, 4, 4), 2 * 2**0.5)],
)
def test_the_shift_is_fixed_or_grows_with_the_root_of_the_tokens(shift, reference, grid, expected):
    config = FlowConfig(shift=shift, shift_reference_tokens=reference)
    sigma = torch.linspace(0, 1, 11)
    found = shifted(sigma, config, torch.zeros(1, 2, *grid))
    assert found[0] == 0 and found[-1] == 1
    torch.testing.assert_close(found, expected * sigma / (1 + (expected - 1) * sigma))
    # Its meaning (SD3, equation 23): the ratio of noise to data is multiplied by the shift.
    inner = slice(1, -1)
    torch.testing.assert_close(found[inner] / (1 - found[inner]), expected * sigma[inner] / (1 - sigma[inner]))


def test_training_draws_shifted_levels():
    plain, moved = (flow(shift=shift).noise_levels(many(), step=1) for shift in (1.0, 4.0))
    torch.testing.assert_close(moved, 4 * plain / (1 + 3 * plain))


def losses_of(objective: FlowMatching, model, batch: Clips, step: int) -> torch.Tensor:
    question = objective.ask(batch, step)
    return objective.losses(question.put_to(model), batch, question)


def test_what_a_sample_meets_depends_on_nothing_beside_it():
    ids = [0, 5, 2**31 + 1, 77, 8, 9, 10]
    objective = flow(caption_dropout=0.5)
    seen = {}

    def model(x_t, sigma_B, text_BTW, pooled_BW):
        for index, sample_id in enumerate(batch):
            values = (x_t[index], sigma_B[index], text_BTW[index], pooled_BW[index])
            seen.setdefault(sample_id, []).append(values)
        return patchify(x_t.sin() * sigma_B.view(-1, 1, 1, 1, 1))

    losses = {}
    for batch in (ids, ids[::-1], ids[2:3], [ids[4], 123, ids[0]], ids[1:]):
        for sample_id, loss in zip(batch, losses_of(objective, model, clips(batch, (3, 2, 4), 2), step=6), strict=True):
            losses.setdefault(sample_id, []).append(loss)
    for sample_id in ids:
        assert len(seen[sample_id]) >= 3
        for values in seen[sample_id][1:]:
            assert all(torch.equal(one, other) for one, other in zip(seen[sample_id][0], values, strict=True))
        # Its own 48 squares, which torch adds up in an order that depends on the batch's size: some units in the last
        # place on some processors.
        found = torch.stack(losses[sample_id])
        assert found.max() - found.min() <= 4 * torch.finfo(torch.float32).eps * found.max()


def test_noise_level_dropout_and_noise_are_independent():
    objective, batch = flow(density="uniform", caption_dropout=0.5), many()
    sigma_B = objective.noise_levels(batch, step=4)
    dropped_B = objective.with_dropout(batch, step=4).pooled_BW[:, 0] == EMPTY.pooled_BW[0]
    _, noise = KERNELS.flow_noise(batch.latents_BCFYX, sigma_B, batch.sample_B, step=4, seed=objective.seed)
    draws = torch.stack([sigma_B, dropped_B.float(), noise[:, 0, 0, 0, 0], noise[:, 0, 0, 1, 1]])
    # A number used twice shows in an even function of it as well.
    for values in (draws, (draws - draws.mean(1, keepdim=True)).abs()):
        for one, other in [(0, 1), (0, 2), (0, 3), (1, 2), (2, 3)]:
            if values[[one, other]].std(dim=1).min() > 1e-3:
                assert abs(torch.corrcoef(values[[one, other]])[0, 1]) < 5 / math.sqrt(MANY)


def test_the_loss_is_the_mean_squared_error_of_noise_minus_data():
    batch, objective = clips([4, 9, 2], (3, 4, 2), 3), flow(caption_dropout=0.0)
    handed = {}

    def zero(x_t, sigma_B, text_BTW, pooled_BW):
        handed.update(x_t=x_t, sigma=sigma_B.view(-1, 1, 1, 1, 1))
        assert torch.equal(text_BTW, batch.caption.tokens_BTW) and torch.equal(pooled_BW, batch.caption.pooled_BW)
        return torch.zeros_like(patchify(x_t))

    losses_B = losses_of(objective, zero, batch, step=2)
    x0, sigma = batch.latents_BCFYX.double(), handed["sigma"].double()
    noise = (handed["x_t"].double() - (1 - sigma) * x0) / sigma  # the straight path, solved for its noise
    torch.testing.assert_close(losses_B.double(), (noise - x0).square().mean((1, 2, 3, 4)), rtol=1e-4, atol=0)
    perfect = losses_of(objective, lambda *_: patchify((noise - x0).float()), batch, step=2)
    assert perfect.max() < 1e-8


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 1.0])
def test_captions_are_dropped_as_often_as_configured(share):
    caption = flow(caption_dropout=share).with_dropout(many(), step=5)
    dropped_B = caption.pooled_BW[:, 0] == EMPTY.pooled_BW[0]
    assert_share(dropped_B, share)  # none at 0 and all at 1: there the allowed difference is 0
    # All of a caption goes, or nothing.
    expected = torch.where(dropped_B[:, None, None], EMPTY.tokens_BTW, torch.zeros(1))
    assert torch.equal(caption.tokens_BTW, expected)
    assert torch.equal(caption.pooled_BW, torch.where(dropped_B[:, None], EMPTY.pooled_BW, torch.zeros(1)))


def guidance(scale: float, prompt: float = 1.0, negative: float = 0.0, batch: int = 2) -> Guidance:
    def caption(value):
        return Caption(torch.full((batch, 1, 1), value), torch.full((batch, 1), value))

    return Guidance(prompt=caption(prompt), negative=caption(negative), scale=scale)


@pytest.mark.parametrize("steps", [1, 3, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_constant_velocity_is_integrated_exactly(steps, shift):
    noise, velocity = torch.randn(2, 1, 3, 2, 4), torch.randn(1, 1, 3, 2, 4)
    calls = []

    def model(latents, sigma_B, text, pooled):
        calls.append(sigma_B)
        return velocity.expand_as(latents)

    done = []
    found = sample(model, noise, guidance(4.0), FlowConfig(shift=shift), steps, done.append)
    torch.testing.assert_close(found, noise - velocity, rtol=0, atol=1e-5)
    assert done == list(range(1, steps + 1))
    levels = torch.linspace(1, 0, steps + 1)[:-1]
    expected = shift * levels / (1 + (shift - 1) * levels)
    assert all(call.shape == (4,) and (call == call[0]).all() for call in calls)
    torch.testing.assert_close(torch.stack(calls)[:, 0], expected)


def test_euler_reaches_a_gaussian_at_first_order():
    """For data N(mean, width^2) the best velocity is known, and its path ends at mean + width x noise."""
    mean, width = 0.8, 0.3

    def model(x_t, sigma_B, text, pooled):
        sigma = sigma_B.view(-1, 1, 1, 1, 1)
        centred = x_t - (1 - sigma) * mean
        variance = (1 - sigma) ** 2 * width**2 + sigma**2
        return (sigma * centred - (1 - sigma) * width**2 * centred) / variance - mean

    noise = torch.randn(1, 1, 5, 6, 4, generator=torch.Generator().manual_seed(3))
    errors = []
    for steps in (64, 128):
        found = sample(model, noise, guidance(1.0, batch=1), FlowConfig(), steps)
        errors.append((found - (mean + width * noise)).norm() / noise.norm())
    assert errors[0] < 0.02
    assert 1.8 < errors[0] / errors[1] < 2.2


@pytest.mark.parametrize("scale, expected", [(0.0, 0.25), (1.0, 2.0), (6.0, 0.25 + 6 * 1.75)])
def test_guidance_goes_from_the_negative_prompt_towards_the_prompt(scale, expected):
    def model(latents, sigma_B, text, pooled):
        assert torch.equal(text[:, 0], pooled)
        return text[:, :, :, None, None].expand_as(latents)

    noise = torch.randn(2, 1, 1, 2, 2)
    found = sample(model, noise, guidance(scale, prompt=2.0, negative=0.25), FlowConfig(), 2)
    torch.testing.assert_close(found, noise - expected)


def test_initial_noise_is_normal_and_a_videos_own():
    three = initial_noise((4, 3, 6, 10), 3, seed=5, device=torch.device("cpu"))
    assert torch.equal(initial_noise((4, 3, 6, 10), 1, 5, torch.device("cpu"))[0], three[0])
    assert not torch.equal(initial_noise((4, 3, 6, 10), 1, 6, torch.device("cpu"))[0], three[0])
    assert abs(torch.corrcoef(three.flatten(1))[0, 1]) < 5 / math.sqrt(three[0].numel())
    assert abs(three.mean()) < 5 / math.sqrt(three.numel()) and abs(three.std() - 1) < 5 / math.sqrt(2 * three.numel())
