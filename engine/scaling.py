"""What a sweep measured, as CSV, JSON and curves: weak and strong scaling, the plan's word beside each point."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..parallel.durable import write_text
from .report.facts import read_run
from .sweep import MEASURED, STRONG, WEAK, Row

TABLE_FILE, RECORDS_FILE, CURVES_FILE = "sweep.csv", "sweep.json", "scaling.png"
TITLES = {STRONG: "strong scaling: the same global batch", WEAK: "weak scaling: a batch that grows with the world"}


def measure(folder: Path) -> dict[str, float | None]:
    """A finished run's MEASURED; the first steps, which lay memory out, are not in medians."""
    facts = read_run(folder, with_profile=False)
    last = facts.training[-1]
    return {name: last[name] if name in ("memory", "loss") else facts.median(name) for name in MEASURED}


def write_tables(rows: Sequence[Row], folder: Path) -> list[dict[str, Any]]:
    """sweep.csv and sweep.json; the records."""
    records = [row.plain() for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(key for record in records for key in record)))
    writer.writeheader()
    writer.writerows(records)
    write_text(folder / TABLE_FILE, text.getvalue())
    write_text(folder / RECORDS_FILE, json.dumps(records, indent=2, allow_nan=False) + "\n")
    return records


def draw_curves(rows: Sequence[Row], folder: Path) -> Path | None:
    """scaling.png: tokens a second over ranks, a line for each point of the grid; None where nothing was measured."""
    done = [row for row in rows if row.status == "done"]
    if not done:
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, NullFormatter, ScalarFormatter

    kinds = [kind for kind in (STRONG, WEAK) if any(kind in row.point.scaling for row in done)]
    figure, panels = pyplot.subplots(
        1, len(kinds), figsize=(6.4 * len(kinds), 4.8), layout="constrained", squeeze=False
    )
    for kind, axes in zip(kinds, panels[0], strict=True):
        here = [row for row in done if kind in row.point.scaling]
        worlds = sorted({row.point.world for row in here})
        for number, (name, points) in enumerate(_lines(here).items()):
            _draw_line(axes, points, name, f"C{number}")
        # Twice the ranks, twice the tokens: from the best of the smallest world.
        best = max(row.measured["tokens_per_second"] for row in here if row.point.world == worlds[0])
        ideal = [best * world / worlds[0] for world in worlds]
        axes.plot(worlds, ideal, color="0.6", linestyle=":", label="ideal", zorder=0)
        axes.set(xscale="log", yscale="log", xlabel="ranks", ylabel="tokens a second", title=TITLES[kind])
        axes.xaxis.set_major_locator(FixedLocator(worlds))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(folder / CURVES_FILE, dpi=120)
    pyplot.close(figure)
    return folder / CURVES_FILE


def _lines(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Points of the same grid values, over worlds."""
    lines: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.point.world):
        name = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in row.point.values.items()) or "as given"
        lines.setdefault(name, []).append(row)
    return lines


def _draw_line(axes: Any, rows: Sequence[Row], name: str, colour: str) -> None:
    worlds = [row.point.world for row in rows]
    axes.plot(worlds, [row.measured["tokens_per_second"] for row in rows], "o-", color=colour, label=name)
    planned = [row for row in rows if row.predicted_seconds]
    if planned:
        rates = [row.measured["tokens_per_second"] * row.measured["seconds"] / row.predicted_seconds for row in planned]
        axes.plot(
            [row.point.world for row in planned], rates, "s--", color=colour, fillstyle="none", label=f"{name}, planned"
        )
