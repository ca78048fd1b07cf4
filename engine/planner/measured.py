"""Shares of a device's peaks as measured: tests/benchmarks/planner_figures.py takes them from its results/.

Made by that script; edit neither a line of this by hand.
"""

from typing import NamedTuple


class Measured(NamedTuple):
    """One figure: products and attention as shares of the peak, memory as a share of its rate; on a CPU, which has no
    peak, all products in TFLOP/s of one process."""

    hardware: str
    figure: str
    value: float
    file: str
    date: str


MEASURED = (
    Measured(
        "h100-80g",
        "products",
        0.7443,
        "block_h100.json",
        "2026-11-26",
    ),
    Measured(
        "h100-80g",
        "attention_forward",
        0.5263,
        "kernels_attention_h100.json",
        "2026-11-26",
    ),
    Measured(
        "h100-80g",
        "attention_backward",
        0.3246,
        "kernels_attention_h100.json",
        "2026-11-26",
    ),
    Measured(
        "h100-80g",
        "attention_backward_unrepeatable",
        0.4087,
        "kernels_attention_h100.json",
        "2026-11-26",
    ),
    Measured(
        "h100-80g",
        "memory",
        0.8271,
        "kernels_tokens_h100.json",
        "2026-11-26",
    ),
    Measured(
        "h100-80g",
        "optimizer_memory",
        0.8499,
        "kernels_optimizer_h100.json",
        "2026-11-26",
    ),
    Measured(
        "cpu",
        "products_tflops",
        0.1363,
        "rival_step_cpu_2_threads.json",
        "2026-11-26",
    ),
)
