"""Writes engine/planner/measured.py: what the planner takes from results/, which an installed wheel does not hold.

    python tests/benchmarks/planner_figures.py > engine/planner/measured.py

tests/engine/planner/test_measured.py fails where the two differ.
"""

import json
import statistics
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
BLOCK, KERNELS = "block_h100.json", ("kernels_tokens_h100.json", "kernels_optimizer_h100.json")
ATTENTION, CPU = "kernels_attention_h100.json", "rival_step_cpu_2_threads.json"
BLOCK_TOKENS, WIDTH, HEADS = (41_472, 333), 2432, 38
PEAK, MEMORY = 989.4, 3350.0
"""Of the H100, as engine/hardware.py has them: figures are shares of these."""

HEAD = '''"""Shares of a device's peaks as measured: tests/benchmarks/planner_figures.py takes them from its results/.

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
'''


def figures() -> list[tuple[str, str, float, str, str]]:
    """(hardware, figure, value, file, date)."""
    attention, block, cpu = read(ATTENTION), read(BLOCK), read(CPU)
    found = [("h100-80g", "products", products_of(block) / PEAK, BLOCK, block["date"])]
    for name, backend, direction in (
        ("attention_forward", "flash_attn_repeatable", "forward"),
        ("attention_backward", "flash_attn_repeatable", "backward"),
        ("attention_backward_unrepeatable", "flash_attn", "backward"),
    ):
        (row,) = (each for each in attention["rows"] if (each["backend"], each["direction"]) == (backend, direction))
        found.append(("h100-80g", name, row["tflops"] / PEAK, ATTENTION, attention["date"]))
    for name, file in zip(("memory", "optimizer_memory"), KERNELS, strict=True):
        content = read(file)
        rates = [row["gbs"] for row in content["rows"] if row["backend"].startswith("gpu") and row["bound"] == "memory"]
        found.append(("h100-80g", name, statistics.median(rates) / MEMORY, file, content["date"]))
    steps = [run["tflops"] for run in cpu["runs"]["engine"]]
    found.append(("cpu", "products_tflops", statistics.median(steps), CPU, cpu["date"]))
    return found


def products_of(block: dict) -> float:
    """TFLOP/s of the matrix products of one block, forward and backward, by the time of cuBLAS's kernels."""
    video, text = BLOCK_TOKENS
    operations = 3 * 2 * 12 * WIDTH**2 * (video + text) + 3 * 2 * 12 * WIDTH**2
    longest = block["longest"]
    milliseconds = sum(ms for name, ms in longest if name.startswith(("nvjet", "void cutlass::Kernel2")))
    return operations / milliseconds / 1e9


def read(file: str) -> dict:
    return json.loads((RESULTS / file).read_text())


def module() -> str:
    """The whole text of engine/planner/measured.py."""
    lines = []
    for hardware, figure, value, file, date in figures():
        lines += ["    Measured(", *(f"        {each}," for each in (
            f'"{hardware}"', f'"{figure}"', f"{value:.4f}", f'"{file}"', f'"{date}"')), "    ),"]  # fmt: skip
    return HEAD + "\n".join(lines) + "\n)\n"


if __name__ == "__main__":
    sys.stdout.write(module())
