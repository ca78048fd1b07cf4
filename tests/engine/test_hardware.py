"""Peaks by the names that drivers report, and what a step's operations come to over its seconds."""

import pytest

from contentv.engine.hardware import HARDWARE, Peak, Utilisation, peak_of
from contentv.model.cost import StepOperations

OPERATIONS = StepOperations(forward=3 * 10**12, backward=6 * 10**12, recomputed=4 * 10**12)


@pytest.mark.parametrize(
    "name, precision, tflops",
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H200", "bf16", 989.4),
        ("NVIDIA H200", "fp32", 66.9),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312.0),
        ("NVIDIA A100 80GB PCIe", "fp32", 19.5),
        ("A100-SXM4-40GB", "bf16", 312.0),
        ("NVIDIA H100 PCIe", "bf16", None),  # another chip, a quarter slower
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16", None),  # a seventh of the device
        ("Ascend910B3", "bf16", 376.0),
        ("Ascend910B4", "bf16", None),  # another model, with 32 GB
        ("cpu", "fp32", None),
        ("anything else", "fp32", None),
    ],
)
def test_a_device_is_known_by_its_whole_name(name, precision, tflops):
    assert peak_of(name, precision).tflops == tflops


def test_a_configured_peak_stands_for_any_device():
    assert peak_of("Ascend910B3", "bf16", 354.0) == Peak(tflops=354.0, reason="trainer.peak_tflops")
    assert peak_of("NVIDIA H200", "bf16", 500.0).tflops == 500.0
    assert "conflict" in peak_of("Ascend910B3", "bf16").reason


def test_every_peak_has_a_source():
    assert all(hardware.source for hardware in HARDWARE)
    assert all(peak > 0 for hardware in HARDWARE for peak in hardware.peak_tflops.values())


def test_mfu_leaves_recomputation_out_and_hfu_counts_it():
    used = Utilisation.of(OPERATIONS, seconds=0.5, devices=4, peak=Peak(tflops=10.0, reason="test"))
    assert used.tflops == pytest.approx(4.5)  # 9e12 in half a second on four devices
    assert (used.mfu, used.hfu) == (pytest.approx(0.45), pytest.approx(0.65))


def test_without_a_peak_there_is_a_rate_and_no_share():
    used = Utilisation.of(OPERATIONS, seconds=2.0, devices=1, peak=Peak(tflops=None, reason="test"))
    assert (used.tflops, used.mfu, used.hfu) == (pytest.approx(4.5), None, None)
