"""The roofline as a picture: what each kernel reached, under what the device can do (Williams, Waterman, Patterson,
"Roofline: An Insightful Visual Performance Model", CACM 2009)."""

from collections.abc import Sequence
from pathlib import Path

from .kernel_bench import Roof, Row


def draw_roofline(rows: Sequence[Row], roof: Roof, title: str, path: Path) -> None:
    """Writes a PNG: intensity in operations a byte against 10^12 operations a second, a mark a row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 6), layout="constrained")
    measured = [row for row in rows if row.ms is not None and row.gflops and row.gbytes]
    intensities = [row.gflops / row.gbytes for row in measured]
    low, high = min(intensities, default=0.1) / 3, max(intensities, default=1000) * 3
    ridge = 1e3 * roof.product_tflops / roof.copy_gbs
    line = sorted({low, min(max(ridge, low), high), high})
    axes.plot(line, [min(each * roof.copy_gbs / 1e3, roof.product_tflops) for each in line], color="black", zorder=1)
    backends = sorted({row.backend for row in measured})
    for index, backend in enumerate(backends):
        its = [row for row in measured if row.backend == backend]
        for direction, marker in (("forward", "o"), ("backward", "^")):
            points = [(row.gflops / row.gbytes, row.tflops) for row in its if row.direction == direction]
            if points:
                axes.scatter(*zip(*points, strict=True), marker=marker, color=f"C{index}", s=36, alpha=0.8, zorder=2,
                             label=f"{backend}, {direction}")  # fmt: skip
    for op in {row.op for row in measured}:
        best = max((row for row in measured if row.op == op), key=lambda row: row.tflops)
        axes.annotate(op, (best.gflops / best.gbytes, best.tflops), xytext=(4, 4), textcoords="offset points",
                      fontsize=8)  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="TFLOP/s", title=title)
    axes.grid(True, which="both", alpha=0.2)
    if backends:
        axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
