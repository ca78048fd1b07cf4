"""The planner's table of measured figures is what tests/benchmarks/results say."""

from pathlib import Path

import pytest

from contentv.engine.hardware import HARDWARE, hardware_of
from contentv.engine.planner import measured
from contentv.engine.planner.rates import rates_of
from tests.benchmarks.planner_figures import MEMORY, PEAK, module


def test_the_committed_table_is_what_the_script_makes_of_the_results():
    assert Path(measured.__file__).read_text() == module()


def test_shares_are_of_the_peaks_in_the_hardware_table():
    assert hardware_of("h100-80g").peak_tflops["bf16"] == PEAK and hardware_of("h100-80g").memory_gbs == MEMORY


@pytest.mark.parametrize("key", [hardware.key for hardware in HARDWARE])
def test_every_figure_says_whether_it_was_measured(key):
    said = rates_of(hardware_of(key), "bf16").assumptions
    shares = [each for each in said if " at 0." in each]
    assert shares and all("measured" in each or "assumed" in each for each in shares)
    assert any("measured: " in each for each in shares) == (key in ("h100-80g", "cpu"))


def test_a_precision_without_a_peak_is_refused_until_one_is_given():
    with pytest.raises(ValueError, match="no peak of h100-80g is known at fp8: set --trainer.peak-tflops"):
        rates_of(hardware_of("h100-80g"), "fp8")
    assert rates_of(hardware_of("h100-80g"), "fp8", peak_tflops=1000.0).products.best > 700e12


def test_hardware_that_is_not_there_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="there is no hardware 'h100'; choose one of h100-80g, .*cpu"):
        hardware_of("h100")
