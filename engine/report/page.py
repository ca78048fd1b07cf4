"""One run as one HTML file: nothing is fetched, so it is readable offline, by mail, and in ten years.

facts = read_run(folder)
page(facts, roof, plan)         head, figures, curves, a step's time, operations, memory, plan, restarts, sheet
"""

import base64
import statistics
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path

from ...model.cost import count_parameters
from ..config_yaml import to_yaml
from ..planner import Prediction
from .chart import Line, line_chart, short
from .facts import RunFacts
from .profile_sections import memory, operations, step_time
from .roof import DeviceRoof
from .style import SCRIPT, STYLE
from .table import Cell, table

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Asked of the browser: no request at all."""
MEAN_OF = 25
"""Steps that the bold curve averages over."""


def page(facts: RunFacts, roof: DeviceRoof | None, prediction: Prediction | None) -> str:
    """The whole document."""
    sections = (
        head(facts),
        curves(facts),
        step_time(facts),
        operations(facts, roof),
        memory(facts),
        plan(facts, prediction),
        restarts(facts),
        sheet(facts),
        configuration(facts),
    )
    return document(facts.name, "".join(sections), f"contentv report of {facts.folder.resolve().name}")


def document(title: str, body: str, made_of: str) -> str:
    """A page around `body`."""
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>{body}"
        f"<footer>{escape(made_of)}, {made}</footer></main><script>{SCRIPT}</script></body></html>\n"
    )


def head(facts: RunFacts) -> str:
    """Name, what it is, and its figures at a glance."""
    config, last = facts.config, facts.training[-1]
    parallel = config.parallel
    layout = [
        f"{axis} {getattr(parallel, axis)}"
        for axis in ("tensor", "context", "pipeline", "virtual_pipeline")
        if getattr(parallel, axis) > 1
    ]
    told = [
        config.recipe,
        f"{count_parameters(config.model) / 1e6:,.1f}M parameters",
        config.trainer.precision,
        f"batch {config.trainer.global_batch}",
        *([f"{facts.world} × {facts.ranks[0].device}"] if facts.world else []),
        " × ".join(layout) or "data parallel alone",
    ]
    tiles = [
        ("steps", f"{last['step']:,} of {config.trainer.max_steps:,}"),
        ("loss, last step", short(last["loss"])),
        *([("held-out loss", short(facts.validation[-1]["validation_loss"]))] if facts.validation else []),
        ("seconds a step, median", short(facts.median("seconds"))),
        ("tokens a second", short(facts.median("tokens_per_second"))),
        *([("MFU", _percent(facts.median("mfu")))] if facts.median("mfu") is not None else []),
        ("peak memory, MiB", short(last["memory"])),
        *([("goodput", _percent(facts.goodput["goodput"]))] if facts.goodput else []),
    ]
    shown = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for name, value in tiles
    )
    return (
        f'<h1>{escape(facts.name)}</h1><p class="soft">{escape(" · ".join(told))}<br>{_state(facts)}</p>'
        f'<div class="tiles">{shown}</div>'
    )


def _state(facts: RunFacts) -> str:
    if facts.outcome is None:
        return "under way, or ended without a word"
    if facts.outcome.get("complete"):
        return '<span class="good">complete</span>'
    signal = facts.outcome.get("signal")
    return f'<span class="bad">stopped{f" by {escape(str(signal))}" if signal else ""}, saved, not finished</span>'


def curves(facts: RunFacts) -> str:
    """Loss, throughput, utilisation, gradient norm."""
    loss = _over_steps(facts, "loss")
    charts = [("Loss", "velocity MSE", [
        Line(name="a step", points=loss, colour=0, style="faint"),
        Line(name=f"mean of {MEAN_OF} steps", points=running_mean(loss), colour=0),
        Line(name="held-out", points=_over_steps(facts, "validation_loss"), colour=1, style="dots"),
    ])]  # fmt: skip
    tokens = _over_steps(facts, "tokens_per_second")
    charts.append(("Throughput", "tokens a second", _smoothed("tokens a second", tokens, 2)))
    mfu, hfu = ([(step, 100 * value) for step, value in _over_steps(facts, name)] for name in ("mfu", "hfu"))
    if mfu:
        lines = [*_smoothed("MFU", mfu, 0), Line(name="HFU, running mean", points=running_mean(hfu), colour=3)]
        charts.append(("Utilisation", "share of the peak (%)", lines))
    else:
        charts.append(("Achieved", "TFLOP/s a device", _smoothed("TFLOP/s", _over_steps(facts, "tflops"), 0)))
    norm = _over_steps(facts, "grad_norm")
    charts.append(("Gradient norm", "global L2 norm before clipping", _smoothed("gradient norm", norm, 4)))
    cards = "".join(
        f'<div class="card"><h3>{title}</h3>{line_chart(lines, "step", label, from_zero=True)}</div>'
        for title, label, lines in charts
    )
    return f'<h2>Training</h2><div class="pair">{cards}</div>{_steps_table(facts)}'


def _smoothed(name: str, points: list, colour: int) -> list[Line]:
    return [
        Line(name=f"{name}, a step", points=points, colour=colour, style="faint"),
        Line(name=f"{name}, mean of {MEAN_OF}", points=running_mean(points), colour=colour),
    ]


def running_mean(points: Sequence[tuple[float, float]], count: int = MEAN_OF) -> list[tuple[float, float]]:
    """Each point's mean with the ones before it, from the first whole stretch on."""
    if len(points) < count:
        return []
    return [
        (points[end - 1][0], statistics.fmean(value for _, value in points[end - count : end]))
        for end in range(count, len(points) + 1)
    ]


def _over_steps(facts: RunFacts, name: str) -> list[tuple[float, float]]:
    lines = facts.validation if name == "validation_loss" else facts.training
    return [(line["step"], line[name]) for line in lines if line.get(name) is not None]


def _steps_table(facts: RunFacts) -> str:
    """Twenty steps of the whole run, for those who read numbers."""
    names = ("step", "loss", "grad_norm", "lr", "seconds", "tokens_per_second", "tflops", "mfu", "hfu", "memory")
    count = len(facts.training)
    chosen = sorted({round(index * (count - 1) / 19) for index in range(20)}) if count > 20 else range(count)
    rows = [[Cell(short(facts.training[index].get(name)), True) for name in names] for index in chosen]
    values = table([(name, True) for name in names], rows)
    return f"<details><summary>Values of {len(rows)} steps</summary>{values}</details>"


PLANNED = {"optimizer": "optimizer", "reading": "data"}
"""The planner's parts of a step's time that the trace has as one part too, and its name there."""


def plan(facts: RunFacts, prediction: Prediction | None) -> str:
    """What was planned beside what was measured."""
    if prediction is None:
        return ""
    last = facts.training[-1]
    measured = {
        "seconds a step": (prediction.step_seconds, facts.median("seconds")),
        "MFU": (prediction.mfu, facts.median("mfu")),
        "memory of a device, GiB": (prediction.total_gib, last["memory"] / 2**10),
    }
    for part, name in PLANNED.items():
        mean = statistics.fmean(rank.forward.get(name, 0) + rank.backward.get(name, 0) for rank in facts.ranks)
        measured[f"{name}, seconds a step"] = (prediction.time_seconds[part], mean)
    rows = [
        [Cell(name), Cell(short(planned), True), Cell(short(found), True), _difference(planned, found)]
        for name, (planned, found) in measured.items()
        if planned is not None
    ]
    heads = [("", False), ("planned", True), ("measured", True), ("measured over planned", True)]
    return f'<h2>Planned and measured</h2><div class="card">{table(heads, rows)}</div>'


def _difference(planned: float, found: float | None) -> Cell:
    return Cell("–" if found is None or not planned else f"{found / planned:.2f}", True)


def restarts(facts: RunFacts) -> str:
    """Every start of the run, and how much of the time since the first one counted."""
    if not facts.attempts:
        return ""
    rows = [
        [
            Cell(each.job or "by hand"),
            Cell(time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.started))),
            Cell(_lasted(each.started, each.ended), True),
            Cell(f"{each.first_step} to {'–' if each.last_step is None else each.last_step}", True),
            Cell(each.reason or "ended from outside, or runs"),
            Cell(", ".join(each.nodes)),
        ]
        for each in facts.attempts
    ]
    heads = [("job", False), ("started", False), ("lasted", True), ("steps", True), ("ended", False), ("nodes", False)]
    share, kept, wall = (facts.goodput[name] for name in ("goodput", "kept_seconds", "wall_seconds"))
    told = (
        f"{len(rows)} starts. Goodput {_percent(share)}: {short(kept)} s went into steps that count, of {short(wall)} "
        "s since the first start."
    )
    return f'<h2>Restarts and goodput</h2><p class="soft">{told}</p><div class="card">{table(heads, rows)}</div>'


def _lasted(start: float, end: float | None) -> str:
    if end is None:
        return "–"
    minutes, seconds = divmod(round(end - start), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {seconds} s"


def sheet(facts: RunFacts) -> str:
    """What it learned, to look at."""
    if facts.sheet is None:
        return ""
    return (
        '<h2>Samples</h2><p class="soft">Frames of the data above frames that the run sampled, a caption each.</p>'
        f'<div class="card"><img alt="contact sheet: source and sampled frames" src="{image(facts.sheet)}"></div>'
    )


def image(path: Path) -> str:
    """A picture inside the page."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def configuration(facts: RunFacts) -> str:
    return (
        "<h2>Configuration</h2><details><summary>config.yaml, as the run resolved it</summary>"
        f"<pre>{escape(to_yaml(facts.config))}</pre></details>"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
