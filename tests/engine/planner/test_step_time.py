"""Time by the planner against measured steps in a world of two: slow, two minutes to four.

Rates are measured between the steps, operation by operation and size by size (calibration.py), as `contentv bench`
would; one factor is fitted on every second case, the others are held out.
"""

from dataclasses import fields, replace
from itertools import pairwise
from math import log

import pytest

from contentv.engine.hardware import hardware_of
from contentv.engine.planner import Shape, predict
from contentv.engine.planner.efficiencies import Efficiencies, Row, rates_by_figure, shortest
from contentv.engine.planner.rate import Rate
from contentv.engine.planner.rates import Rates, rates_of
from contentv.kernels.ranks import RANKS
from tests.engine.planner.small_runs import small_run
from tests.engine.planner.time_cases import CASES, LAUNCHES

PROGRAM = "contentv.tests.engine.planner.programs:steps_and_calls"
CLOSE, APART = 0.25, 1.15
STEPS, SECONDS = 3, 0.03
LEAST, MOST = 2, 3
"""Rounds through all cases: until each has ENOUGH undisturbed steps."""
OTHERS, ENOUGH = 0.2, 3
"""Share of all processors' time that others took during a case's steps. A machine that is never left alone tells
nothing."""
VECTORS = {"wish": ["matrix_product=torch_blas"]}
"""Not the processor's matrix unit: its host throttles it fourfold, for seconds to minutes (docs/measured.md)."""
FACTORS = [2 ** (step / 16) for step in range(-24, 17)]
"""By which everything may be faster in a step than by itself, where its data are warm and no rank waits for another."""


def quick(seconds: list[float]) -> float:
    """The quickest quartile's last: what the machine does when it is left alone, one lucky try aside."""
    return sorted(seconds)[len(seconds) // 4]


def step_seconds(case: dict, rates: Rates) -> float:
    frames, rows, columns = case["latents"]
    shape = Shape(frames=frames, rows=rows, columns=columns, text_tokens=case["text_tokens"])
    return predict(small_run(**case["run"]), 2, hardware_of("cpu"), shape, rates).step_seconds


def measured_rates(rows: list[dict], launches: float) -> Rates:
    """Of calls of all ranks and rounds; a launch takes what a step that has nothing else takes, over their number."""
    calls: dict[tuple, list[dict]] = {}
    for row in rows:
        if row["ms"] is not None:
            calls.setdefault((row["op"], row["case"], row["direction"], row["backend"]), []).append(row)
    known = [field.name for field in fields(Row)]
    found = [
        Row(**{name: same[0][name] for name in known} | {"ms": quick([row["ms"] for row in same])})
        for same in calls.values()
    ]
    figures = rates_by_figure(found, RANKS["cpu"] | {"matrix_product": ("torch_blas",)})
    efficiencies = Efficiencies(
        figures={name: (rate, "measured") for name, rate in figures.items()},
        message_seconds={way: ms / 1e3 for way, ms in shortest(found).items()},
    )
    rates = rates_of(hardware_of("cpu"), "fp32", efficiencies=efficiencies)
    none, some = (step_seconds(LAUNCHES, replace(rates, launch_seconds=seconds)) for seconds in (0.0, 1e-3))
    return replace(rates, launch_seconds=max(0.0, 1e-3 * (launches - none) / (some - none)))


def scaled(rates: Rates, factor: float) -> Rates:
    """Everything so many times faster."""
    faster = {name: rate * factor for name, rate in vars(rates).items() if isinstance(rate, Rate)}
    links = {name: {way: rate * factor for way, rate in getattr(rates, name).items()} for name in ("link", "network")}
    return replace(
        rates, **faster, **links, launch_seconds=rates.launch_seconds / factor,
        message_seconds={way: seconds / factor for way, seconds in rates.message_seconds.items()},
    )  # fmt: skip


def fitted(rates: Rates, seconds: list[float]) -> Rates:
    """With the factor by which the worst of the cases that may be seen is best."""

    def worst(factor: float) -> float:
        pairs = zip(CASES[::2], seconds[::2], strict=True)
        return max(abs(log(step_seconds(case, scaled(rates, factor)) / measured)) for case, measured in pairs)

    return scaled(rates, min(FACTORS, key=worst))


def undisturbed(rounds: list[list[dict]], number: int) -> list[float]:
    """Seconds of the steps of one run during which others left the processors to its ranks."""
    return [
        seconds
        for ranks in rounds
        if ranks[0]["shares"][number][1] - sum(rank["shares"][number][0] for rank in ranks) < OTHERS
        for seconds in ranks[0]["times"][number]
    ]


@pytest.mark.slow
def test_the_time_of_a_step_is_that_of_real_steps(rank_server):
    runs = [case | {"run": case["run"] | {"kernels": VECTORS}} for case in (*CASES, LAUNCHES)]
    rounds, steps = [], [[]]
    while len(rounds) < LEAST or (min(map(len, steps)) < ENOUGH and len(rounds) < MOST):
        rounds.append(rank_server.run(2, PROGRAM, runs=runs, steps=STEPS, seconds=SECONDS, timeout=200))
        steps = [undisturbed(rounds, number) for number in range(len(runs))]
    print(f"undisturbed steps of {len(rounds)} rounds: {[len(each) for each in steps]}")
    if min(map(len, steps)) < ENOUGH:
        pytest.skip(f"of {STEPS * len(rounds)} steps a case too few had the processors to themselves: too busy to tell")
    *seconds, launches = map(quick, steps)
    measured = measured_rates([row for ranks in rounds for rank in ranks for row in rank["rows"]], launches)
    rates = fitted(measured, seconds)
    times = [step_seconds(case, rates) for case in CASES]
    raw = [step_seconds(case, measured) / second for case, second in zip(CASES, seconds, strict=True)]
    told = ", ".join(
        f"{second:.3f} s x {planned / second:.2f} (unfitted {before:.2f})"
        for second, planned, before in zip(seconds, times, raw, strict=True)
    )
    print(f"measured x planned / measured, every second one fitted: {told}")
    for quicker, slower in pairwise(sorted(seconds)):
        assert slower > APART * quicker, f"cases are no longer apart on this machine: {told}"
    assert all(1 - CLOSE < planned / second < 1 + CLOSE for second, planned in zip(seconds, times, strict=True)), told
    assert sorted(range(len(CASES)), key=times.__getitem__) == sorted(range(len(CASES)), key=seconds.__getitem__), told
