"""Shares of a device's peaks as measured: tests/benchmarks/planner_figures.py takes them from its results/.

Made by that script; edit neither a line of this by hand.
"""

from typing import NamedTuple


class Measured(NamedTuple):
    """One figure by the work of a call: products and attention (operations) as shares of the peak, passes over memory
    (bytes) as shares of its rate; on a CPU, which has no peak, all products in TFLOP/s of one process."""

    hardware: str
    figure: str
    points: tuple[tuple[float, float], ...]
    """(work of a call, share), the least work first."""
    file: str
    date: str


MEASURED = (
    Measured(
        "h100-80g",
        "products",
        ((1.96e12, 0.7443),),
        "block_h100.json",
        "2026-11-26",
    ),
    Measured(
        "h100-80g",
        "attention_forward",
        ((1.7e13, 0.5263),),
        "kernels_attention_h100.json",
        "2026-11-26",
    ),
    Measured(
        "h100-80g",
        "attention_backward",
        ((3.4e13, 0.3246),),
        "kernels_attention_h100.json",
        "2026-11-26",
    ),
    Measured(
        "h100-80g",
        "attention_backward_unrepeatable",
        ((3.4e13, 0.4087),),
        "kernels_attention_h100.json",
        "2026-11-26",
    ),
    Measured(
        "h100-80g",
        "memory",
        (
            (2.12e07, 0.6076),
            (6.05e08, 0.8300),
            (1.16e09, 0.8313),
            (2.42e09, 0.7772),
        ),
        "kernels_tokens_h100.json",
        "2026-11-26",
    ),
    Measured(
        "h100-80g",
        "optimizer_memory",
        (
            (7.57e08, 0.8989),
            (1.36e10, 0.8531),
        ),
        "kernels_optimizer_h100.json",
        "2026-11-26",
    ),
    Measured(
        "cpu",
        "products_tflops",
        ((1, 0.2286),),
        "rival_step_cpu_2_threads.json",
        "2026-11-27",
    ),
)
