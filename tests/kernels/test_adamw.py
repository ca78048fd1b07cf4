"""AdamW against torch.optim.AdamW, with clipping, moving average and copy against their closed forms."""

from dataclasses import replace

import pytest
import torch

from contentv.kernels.adamw.cases import CASES, inputs
from contentv.kernels.adamw.reference import adamw

SMALL = [case for case in CASES if not case.large]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_twenty_steps_equal_torch(case, weight_decay):
    arguments = inputs(case)
    master, update = arguments["master"].clone(), replace(arguments["update"], weight_decay=weight_decay)
    theirs = torch.nn.Parameter(master.clone())
    optimizer = torch.optim.AdamW(
        [theirs], lr=update.lr, betas=(update.beta1, update.beta2), eps=update.epsilon, weight_decay=weight_decay
    )
    moment1, moment2, ema = torch.zeros_like(master), torch.zeros_like(master), master.clone()
    their_ema = master.double()
    generator = torch.Generator().manual_seed(3)
    for step in range(1, 21):
        gradient = torch.randn(master.shape, generator=generator) * 10.0 ** -(step % 4)
        factor = torch.rand((), generator=generator)
        adamw(master, gradient, moment1, moment2, ema, None, replace(update, step=step, clip_factor=factor))
        theirs.grad = gradient * factor
        optimizer.step()
        their_ema = update.ema_decay * their_ema + (1 - update.ema_decay) * theirs.detach().double()
    # One ULP of fp32: the order of operations is torch's own.
    torch.testing.assert_close(master, theirs.detach(), rtol=2**-23, atol=1e-9)
    state = optimizer.state[theirs]
    torch.testing.assert_close(moment1, state["exp_avg"], rtol=2**-23, atol=1e-9)
    torch.testing.assert_close(moment2, state["exp_avg_sq"], rtol=2**-23, atol=1e-12)
    # The average rounds to fp32 in each of the 20 steps.
    torch.testing.assert_close(ema.double(), their_ema, rtol=20 * 2**-24, atol=1e-7)


def test_clipping_comes_before_the_moments():
    arguments = inputs(SMALL[0])
    gradient, factor = arguments["gradient"], arguments["update"].clip_factor
    expected1 = 0.9 * arguments["moment1"] + 0.1 * factor * gradient
    expected2 = 0.95 * arguments["moment2"] + 0.05 * (factor * gradient) ** 2
    adamw(**arguments)
    torch.testing.assert_close(arguments["moment1"], expected1, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(arguments["moment2"], expected2, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_copy_is_the_rounded_master_and_the_gradient_is_only_read(dtype):
    arguments = inputs(SMALL[1], dtype=dtype)
    gradient, before = arguments["gradient"].clone(), arguments["master"].clone()
    adamw(**arguments)
    assert arguments["copy"].dtype == dtype and torch.equal(arguments["copy"], arguments["master"].to(dtype))
    assert torch.equal(arguments["gradient"], gradient) and not torch.equal(arguments["master"], before)


def test_average_and_copy_are_optional_and_change_nothing_else():
    full, bare = inputs(SMALL[1]), inputs(SMALL[1]) | {"ema": None, "copy": None}
    adamw(**full)
    adamw(**bare)
    for name in ("master", "moment1", "moment2"):
        assert torch.equal(full[name], bare[name])


def test_the_average_follows_the_new_master():
    arguments = inputs(SMALL[1])
    before = arguments["ema"].double()
    adamw(**arguments)
    expected = 0.99 * before + 0.01 * arguments["master"].double()
    torch.testing.assert_close(arguments["ema"].double(), expected, rtol=4 * 2**-24, atol=1e-7)


def test_zero_stays_zero():
    """Padded heads are zeros with zero gradients: neither Adam nor decay may move them."""
    zeros = [torch.zeros(3, 5) for _ in range(5)]
    adamw(*zeros, None, inputs(SMALL[1])["update"])
    assert not any(each.any() for each in zeros)


def test_views_are_updated_in_place():
    """The distributed optimizer hands over slices of flat buffers."""
    case = SMALL[1]
    plain, buffer = inputs(case), torch.zeros(case["D"] * case["M"] + 3)
    sliced = inputs(case)
    view = buffer[3:].view(case["D"], case["M"]).copy_(sliced["master"])
    adamw(**(sliced | {"master": view}))
    adamw(**plain)
    assert torch.equal(buffer[3:].view_as(view), plain["master"]) and not buffer[:3].any()


def test_updates_are_counted_from_one():
    with pytest.raises(AssertionError, match="step 1"):
        replace(inputs(SMALL[1])["update"], step=0)
