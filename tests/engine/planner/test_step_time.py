"""Time by the planner against measured steps in a world of two: slow, since a shared machine's minutes differ."""

from dataclasses import replace
from itertools import pairwise, product
from math import log
from statistics import median

import pytest

from contentv.engine.hardware import hardware_of
from contentv.engine.planner import Shape, predict
from contentv.engine.planner.rates import Rates, rates_of
from tests.engine.planner.small_runs import small_run
from tests.engine.planner.time_cases import CASES

SECONDS = "contentv.tests.engine.planner.programs:step_seconds"
CLOSE, APART = 0.25, 1.15
ROUNDS = 3
QUIET = 1.2
"""Slowest over quickest step of one case; above it the machine's noise is as large as what is asked."""
STEPS = [2 ** (step / 4) for step in range(-16, 17)]
"""Factors that a rate may be fitted by."""


def planned(case: dict, rates: Rates) -> float:
    frames, rows, columns = case["latents"]
    shape = Shape(frames=frames, rows=rows, columns=columns, text_tokens=case["text_tokens"])
    return predict(small_run(**case["run"]), 2, hardware_of("cpu"), shape, rates).step_seconds


def fitted(seconds: list[float]) -> Rates:
    """Rates of products, of attention and of messages with which the worst of the cases that may be seen is best."""
    start = rates_of(hardware_of("cpu"), "fp32")

    def scaled(products: float, attention: float, messages: float) -> Rates:
        return replace(
            start,
            products=start.products * products,
            attention_forward=start.attention_forward * attention,
            attention_backward=start.attention_backward * attention,
            memory=start.memory * products,
            optimizer_memory=start.optimizer_memory * products,
            link=start.link * messages,
            network=start.network * messages,
            message_seconds=start.message_seconds / messages,
        )

    def worst(factors: tuple[float, float, float]) -> float:
        rates = scaled(*factors)
        pairs = zip(CASES[::2], seconds[::2], strict=True)
        return max(abs(log(planned(case, rates) / measured)) for case, measured in pairs)

    return scaled(*min(product(STEPS[::4], repeat=3), key=worst))


@pytest.mark.slow
def test_the_time_of_a_step_is_that_of_real_steps(rank_server):
    ranks = rank_server.run(2, SECONDS, runs=list(CASES), rounds=ROUNDS, timeout=280)
    seconds = [median(steps) for steps in ranks[0]]
    noise = median(max(steps) / min(steps) for steps in ranks[0])
    if noise > QUIET:
        pytest.skip(f"this machine repeats a step within {noise:.2f} times its quickest: it is too busy to tell")
    rates = fitted(seconds)
    ratios = [planned(case, rates) / measured for case, measured in zip(CASES, seconds, strict=True)]
    found = ", ".join(f"{measured:.3f} s x {ratio:.2f}" for measured, ratio in zip(seconds, ratios, strict=True))
    print(f"measured x planned / measured, every second fitted: {found}")
    for quicker, slower in pairwise(sorted(seconds)):
        assert slower > APART * quicker, f"cases are no longer apart on this machine: {found}"
    assert all(1 - CLOSE < ratio < 1 + CLOSE for ratio in ratios), found
    times = [planned(case, rates) for case in CASES]
    assert sorted(range(len(CASES)), key=times.__getitem__) == sorted(range(len(CASES)), key=seconds.__getitem__), found
