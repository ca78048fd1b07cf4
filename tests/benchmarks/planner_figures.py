"""Writes engine/planner/measured.py: what the planner takes from results/, which an installed wheel does not hold.

    python tests/benchmarks/planner_figures.py > engine/planner/measured.py

tests/engine/planner/test_measured.py fails where the two differ.
"""

import json
import statistics
import sys
from dataclasses import fields
from pathlib import Path

from contentv.engine.planner.efficiencies import Row, rates_by_figure
from contentv.engine.planner.rate import Rate
from contentv.kernels.ranks import RANKS

RESULTS = Path(__file__).parent / "results"
BLOCK, TOKENS, OPTIMIZER = "block_h100.json", "kernels_tokens_h100.json", "kernels_optimizer_h100.json"
ATTENTION, CPU = "kernels_attention_h100.json", "rival_step_cpu_2_threads.json"
ATOMIC = "_unrepeatable"
ATTENTION_FIGURES = ("attention_forward", "attention_backward", f"attention_backward{ATOMIC}")
REPEATABLE = {
    figure: {"joint_attention": ("flash_attn_repeatable",)} for figure in ("attention_forward", "attention_backward")
}
"""Measured as a backend of its own: flash_attn told to give the same bits twice."""
KEYS = [field.name for field in fields(Row)]
BLOCK_TOKENS, WIDTH, HEADS = (41_472, 333), 2432, 38
PEAK, MEMORY = 989.4, 3350.0
"""Of the H100, as engine/hardware.py has them: figures are shares of these."""

HEAD = '''"""Shares of a device's peaks as measured: tests/benchmarks/planner_figures.py takes them from its results/.

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
'''


def figures() -> list[tuple[str, str, Rate, str, str]]:
    """(hardware, figure, shares, file, date)."""
    block, cpu = read(BLOCK), read(CPU)
    largest = 2.0 * BLOCK_TOKENS[0] * WIDTH * 4 * WIDTH
    found = [("h100-80g", "products", Rate(((largest, products_of(block) / PEAK),)), BLOCK, block["date"])]
    for file, wanted in ((ATTENTION, ATTENTION_FIGURES), (TOKENS, ("memory",)), (OPTIMIZER, ("optimizer_memory",))):
        content = read(file)
        rows = [Row(**{key: row[key] for key in KEYS}) for row in content["rows"]]
        for figure in wanted:
            rate = rates_by_figure(rows, RANKS["cuda"] | REPEATABLE.get(figure, {}))[figure.removesuffix(ATOMIC)]
            best = MEMORY * 1e9 if figure in ("memory", "optimizer_memory") else PEAK * 1e12
            found.append(("h100-80g", figure, rate * (1 / best), file, content["date"]))
    steps = [run["tflops"] for run in cpu["runs"]["engine"]]
    found.append(("cpu", "products_tflops", Rate.flat(statistics.median(steps)), CPU, cpu["date"]))
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
    for hardware, figure, rate, file, date in figures():
        points = [f"({f'{work:.3g}'.replace('e+', 'e')}, {share:.4f})" for work, share in rate.points]
        if len(points) == 1:
            shares = [f"        ({points[0]},),"]
        else:
            shares = ["        (", *(f"            {point}," for point in points), "        ),"]
        lines += ["    Measured(", f'        "{hardware}",', f'        "{figure}",', *shares, f'        "{file}",',
                  f'        "{date}",', "    ),"]  # fmt: skip
    return HEAD + "\n".join(lines) + "\n)\n"


if __name__ == "__main__":
    sys.stdout.write(module())
