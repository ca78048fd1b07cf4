"""AdamW against torch.optim.AdamW, with clipping, moving average and copy against their closed forms."""

from dataclasses import replace

import pytest
import torch

from contentv.kernels.adamw.cases import CASES, inputs
from contentv.kernels.case import ODD, QUICKSTART, SINGLE

SMALL = [case for case in CASES if not case.large]


@pytest.fixture(params=["reference", "cpu_native", "gpu_triton", "gpu_cuda", "torch_fused", "apex", "npu_fused"])
def adamw(request, backend):
    return backend("adamw", request.param)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("case", [SINGLE, ODD, QUICKSTART], ids=str)
def test_twenty_steps_equal_torch(adamw, case, weight_decay, device, request):
    if request.node.callspec.params["adamw"] == "gpu_triton" and device == "cpu" and case is QUICKSTART:
        pytest.skip("half a million values a step are too many for Triton's interpreter")
    arguments = inputs(case, device=device)
    masters, update = arguments["masters"], replace(arguments["update"], weight_decay=weight_decay)
    theirs = [torch.nn.Parameter(master.clone()) for master in masters]
    optimizer = torch.optim.AdamW(
        theirs, lr=update.lr, betas=(update.beta1, update.beta2), eps=update.epsilon, weight_decay=weight_decay
    )
    moments1, moments2 = ([torch.zeros_like(master) for master in masters] for _ in range(2))
    emas = [master.clone() for master in masters]
    their_emas = [master.double() for master in masters]
    generator = torch.Generator().manual_seed(3)
    for step in range(1, 21):
        gradients = [
            (torch.randn(master.shape, generator=generator) * 10.0 ** -(step % 4)).to(device) for master in masters
        ]
        factor = torch.rand((), generator=generator).to(device)
        adamw(masters, gradients, moments1, moments2, emas, None, replace(update, step=step, clip_factor=factor))
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient * factor
        optimizer.step()
        their_emas = [
            update.ema_decay * ema + (1 - update.ema_decay) * parameter.detach().double()
            for ema, parameter in zip(their_emas, theirs, strict=True)
        ]
    # The reference works in torch's own order: one ULP of fp32. Others contract a multiply and its add into one
    # rounding or take a root's reciprocal: four roundings in each of 20 steps, and near zero they count as at one.
    bound = 2.0**-23 if adamw.__module__.endswith("reference") and device == "cpu" else 80 * 2.0**-24
    for index, parameter in enumerate(theirs):
        state = optimizer.state[parameter]
        torch.testing.assert_close(masters[index], parameter.detach(), rtol=bound, atol=bound)
        torch.testing.assert_close(moments1[index], state["exp_avg"], rtol=bound, atol=bound)
        torch.testing.assert_close(moments2[index], state["exp_avg_sq"], rtol=bound, atol=bound**2)
        # The average rounds to fp32 in each of the 20 steps.
        torch.testing.assert_close(emas[index].double(), their_emas[index], rtol=20 * 2**-24, atol=2 * bound)


def test_clipping_comes_before_the_moments(adamw, device):
    arguments = inputs(ODD, device=device)
    factor = arguments["update"].clip_factor
    pairs = list(zip(arguments["moments1"], arguments["moments2"], arguments["gradients"], strict=True))
    expected = [(0.9 * one + 0.1 * factor * g, 0.95 * two + 0.05 * (factor * g) ** 2) for one, two, g in pairs]
    adamw(**arguments)
    for (one, two, _), (first, second) in zip(pairs, expected, strict=True):
        torch.testing.assert_close(one, first, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(two, second, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_copies_are_the_rounded_masters_and_gradients_are_only_read(adamw, dtype, device):
    arguments = inputs(ODD, dtype=dtype, device=device)
    kept = {name: [each.clone() for each in arguments[name]] for name in ("gradients", "masters")}
    adamw(**arguments)
    for index, copy in enumerate(arguments["copies"]):
        assert copy.dtype == dtype and torch.equal(copy, arguments["masters"][index].to(dtype))
        assert torch.equal(arguments["gradients"][index], kept["gradients"][index])
        assert not torch.equal(arguments["masters"][index], kept["masters"][index])


def test_averages_and_copies_are_optional_and_change_nothing_else(adamw, device):
    full, bare = inputs(ODD, device=device), inputs(ODD, device=device) | {"emas": None, "copies": None}
    adamw(**full)
    adamw(**bare)
    for name in ("masters", "moments1", "moments2"):
        assert all(torch.equal(*pair) for pair in zip(full[name], bare[name], strict=True))


def test_the_averages_follow_the_new_masters(adamw, device):
    arguments = inputs(ODD, device=device)
    before = [each.double() for each in arguments["emas"]]
    adamw(**arguments)
    for ema, was, master in zip(arguments["emas"], before, arguments["masters"], strict=True):
        expected = 0.99 * was + 0.01 * master.double()
        torch.testing.assert_close(ema.double(), expected, rtol=4 * 2.0**-24, atol=1e-7)


def test_zero_stays_zero(adamw, device):
    """Padded heads are zeros with zero gradients: neither Adam nor decay may move them."""
    zeros = [[torch.zeros(3, 5, device=device)] for _ in range(5)]
    adamw(*zeros, None, inputs(ODD, device=device)["update"])
    assert not any(each.any() for (each,) in zeros)


def test_slices_of_buffers_are_updated_in_place(adamw, device):
    """The distributed optimizer hands over slices of flat buffers, aligned to nothing."""
    plain, sliced = inputs(ODD, device=device), inputs(ODD, device=device)
    buffer = torch.zeros(ODD["D"] * ODD["M"] + 6, device=device)
    view = buffer[3:-3].view(ODD["D"], ODD["M"]).copy_(sliced["masters"][0])
    adamw(**(sliced | {"masters": [view, *sliced["masters"][1:]]}))
    adamw(**plain)
    assert torch.equal(view, plain["masters"][0]) and not buffer[:3].any() and not buffer[-3:].any()


def test_nothing_to_update_is_no_error(adamw, device):
    adamw([], [], [], [], None, None, inputs(ODD, device=device)["update"])


def test_updates_are_counted_from_one():
    with pytest.raises(AssertionError, match="step 1"):
        replace(inputs(ODD)["update"], step=0)
