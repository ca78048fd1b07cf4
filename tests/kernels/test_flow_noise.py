"""Noising: values as a pure function of (seed, sample id, step, element), and the straight path."""

import numpy as np
import pytest
import torch

from contentv.kernels import philox
from contentv.kernels.flow_noise.cases import CASES, inputs
from contentv.kernels.flow_noise.reference import flow_noise

SMALL = [case for case in CASES if not case.large]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_noise_is_philox_and_the_path_is_straight(case):
    arguments = inputs(case)
    x_t, noise = flow_noise(**arguments)
    x0, sigma, sample = (arguments[name] for name in ("x0_BCFYX", "sigma_B", "sample_B"))
    for index in range(case["B"]):
        elements = np.arange(x0[0].numel()).reshape(x0[0].shape)
        words = philox.words(0x1234_5678_9ABC_DEF0, torch.from_numpy(elements), int(sample[index]), 5, 0)
        assert torch.equal(noise[index], philox.normal(words[0], words[1]))
    level = sigma.double().numpy().reshape(-1, 1, 1, 1, 1)
    expected = x0.double().numpy() * (1 - level) + noise.double().numpy() * level
    # Three roundings, none above the larger of the two summands: 4 ULP.
    bound = 4 * 2.0**-24 * (np.abs(x0.numpy()) + np.abs(noise.numpy()))
    assert (np.abs(x_t.double().numpy() - expected) <= bound).all()


def test_batch_and_order_change_no_bit():
    arguments = inputs(SMALL[0])
    x_t, noise = flow_noise(**arguments)
    order = torch.tensor([5, 0, 7])
    per_sample = ("x0_BCFYX", "sigma_B", "sample_B")
    again = flow_noise(**{name: each[order] if name in per_sample else each for name, each in arguments.items()})
    assert torch.equal(again[0], x_t[order]) and torch.equal(again[1], noise[order])


def test_layout_in_memory_changes_no_bit():
    arguments = inputs(SMALL[0])
    strided = arguments["x0_BCFYX"].transpose(1, 4).contiguous().transpose(1, 4)
    assert not strided.is_contiguous()
    for got, expected in zip(flow_noise(**(arguments | {"x0_BCFYX": strided})), flow_noise(**arguments), strict=True):
        assert torch.equal(got, expected) and got.is_contiguous()


@pytest.mark.parametrize("changed", [{"step": 6}, {"seed": 3}, {"sample_B": torch.arange(8) + 10**6 * 3}])
def test_step_seed_and_sample_each_give_new_noise(changed):
    arguments = inputs(SMALL[0])
    correlation = (flow_noise(**arguments)[1] * flow_noise(**(arguments | changed))[1]).mean().abs()
    assert correlation < 5 / arguments["x0_BCFYX"].numel() ** 0.5


def test_the_ends_of_the_path():
    arguments = inputs(SMALL[0])
    arguments["sigma_B"] = torch.tensor([0.0, 1.0] * 4)
    x_t, noise = flow_noise(**arguments)
    assert torch.equal(x_t[::2], arguments["x0_BCFYX"][::2]) and torch.equal(x_t[1::2], noise[1::2])


def test_bf16_mixes_the_rounded_noise():
    arguments, exact = inputs(SMALL[0], dtype=torch.bfloat16), inputs(SMALL[0])
    x_t, noise = flow_noise(**arguments)
    assert x_t.dtype == noise.dtype == torch.bfloat16
    assert torch.equal(noise, flow_noise(**exact)[1].bfloat16())
    sigma = arguments["sigma_B"][:, None, None, None, None]
    expected = (1 - sigma) * arguments["x0_BCFYX"].float() + sigma * noise.float()
    assert torch.equal(x_t, expected.bfloat16())


def test_no_gradient():
    arguments = inputs(SMALL[-1])
    arguments["x0_BCFYX"].requires_grad_()
    assert not any(each.requires_grad for each in flow_noise(**arguments))


def test_a_step_out_of_range_is_refused():
    with pytest.raises(ValueError, match="step"):
        flow_noise(**(inputs(SMALL[-1]) | {"step": -1}))
