"""Two runs side by side: the first step at which they part, and what differs in their configurations."""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ...parallel.durable import write_text
from ..config_yaml import flat, to_plain
from .chart import WIDE, Line, line_chart, short
from .facts import RunFacts, read_run
from .page import document, running_mean
from .table import Cell, table

VALUES = ("loss", "grad_norm", "lr", "tokens")
"""Of a step, what the same training gives again; times and memory are a machine's."""
ASIDE = ("run.folder",)
"""Keys that differ between any two runs."""


@dataclass(frozen=True, kw_only=True)
class Parting:
    """The first step at which a value of two runs differs."""

    step: int
    value: str
    """Its name: one of VALUES, or validation_loss."""
    first: float
    second: float

    @property
    def relative(self) -> float:
        return relative(self.first, self.second)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What `compare` found."""

    runs: tuple[RunFacts, RunFacts]
    tolerance: float
    shared: list[int]
    """Steps that both have."""
    bits: Parting | None
    """First difference in any bit of any value; None: none."""
    beyond: Parting | None
    """First relative difference of losses above the tolerance."""
    largest: float
    """Relative difference of losses over all shared steps."""
    differing: dict[str, tuple[Any, Any]]
    """Key of the configurations -> both values."""

    def plain(self) -> dict[str, Any]:
        """For JSON."""

        def parting(each: Parting | None) -> dict[str, Any] | None:
            if each is None:
                return None
            return {name: _strict(value) for name, value in (vars(each) | {"relative": each.relative}).items()}

        return {
            "runs": [str(run.folder) for run in self.runs],
            "shared_steps": [self.shared[0], self.shared[-1]],
            "first_bit": parting(self.bits),
            "tolerance": self.tolerance,
            "first_beyond_tolerance": parting(self.beyond),
            "largest_relative": _strict(self.largest),
            "configuration": {key: list(values) for key, values in self.differing.items()},
        }


def compare(first: Path, second: Path, *, tolerance: float) -> Comparison:
    """Raises ValueError where a folder holds no run, or the two share no step."""
    runs = read_run(first, with_profile=False), read_run(second, with_profile=False)
    one, other = ({line["step"]: line for line in run.training} for run in runs)
    shared = sorted(one.keys() & other.keys())
    if not shared:
        raise ValueError(f"{first} and {second} share no step: compare runs that trained some of the same steps")
    differences = [
        Parting(step=step, value=name, first=one[step][name], second=other[step][name])
        for step in shared
        for name in VALUES
        if name in one[step] and name in other[step]
    ]
    held_out, again = ({line["step"]: line["validation_loss"] for line in run.validation} for run in runs)
    differences += [
        Parting(step=step, value="validation_loss", first=held_out[step], second=again[step])
        for step in sorted(held_out.keys() & again.keys())
    ]
    # A validation belongs behind the step whose weights it judges.
    differences.sort(key=lambda each: (each.step, each.value == "validation_loss"))
    losses = [each for each in differences if each.value == "loss"]
    return Comparison(
        runs=runs,
        tolerance=tolerance,
        shared=shared,
        bits=next((each for each in differences if not same_bits(each.first, each.second)), None),
        beyond=next((each for each in losses if each.relative > tolerance), None),
        largest=max(each.relative for each in losses),
        differing=differing(*runs),
    )


def same_bits(first: float, second: float) -> bool:
    """NaN is NaN, and 0 is not -0."""
    if math.isnan(first) and math.isnan(second):
        return True
    return struct.pack("<d", first) == struct.pack("<d", second)


def relative(first: float, second: float) -> float:
    """Of two values, their distance over the larger; infinite where one alone is not finite."""
    if first == second or (math.isnan(first) and math.isnan(second)):
        return 0.0
    if not (math.isfinite(first) and math.isfinite(second)):
        return math.inf
    return abs(first - second) / max(abs(first), abs(second))


def differing(first: RunFacts, second: RunFacts) -> dict[str, tuple[Any, Any]]:
    one, other = (flat("", to_plain(run.config)) for run in (first, second))
    keys = [*one, *(key for key in other if key not in one)]
    return {key: (one.get(key), other.get(key)) for key in keys if key not in ASIDE and one.get(key) != other.get(key)}


def told(comparison: Comparison) -> str:
    """For a terminal."""
    lines = [" and ".join(str(run.folder) for run in comparison.runs)]
    lines += [f"  {line}" for line in _sentences(comparison)]
    lines.append("configurations" + ("" if comparison.differing else ": the same"))
    lines += [f"  {key}: {one!r}, {other!r}" for key, (one, other) in comparison.differing.items()]
    return "\n".join(lines)


def _sentences(comparison: Comparison) -> list[str]:
    span, bits, beyond = f"{comparison.shared[0]} to {comparison.shared[-1]}", comparison.bits, comparison.beyond
    if bits is None:
        return [f"equal to the bit over all shared steps, {span}: {', '.join(VALUES)}"]
    first = f"part at step {bits.step}: {bits.value} {bits.first!r}, {bits.second!r} (relative {bits.relative:.2g})"
    if beyond is None:
        second = (
            f"losses stay within {comparison.tolerance:g} over steps {span}: the largest relative difference is "
            f"{comparison.largest:.2g}"
        )
    else:
        second = (
            f"losses differ by more than {comparison.tolerance:g} from step {beyond.step} on: {beyond.first!r}, "
            f"{beyond.second!r} (relative {beyond.relative:.2g})"
        )
    return [first, second]


def draw(comparison: Comparison, out: Path) -> None:
    """The comparison as a page of its own."""
    first, second = comparison.runs
    title = f"{first.name} and {second.name}"
    sentences = "<br>".join(escape(sentence) for sentence in _sentences(comparison))
    curves = [
        Line(name=run.name if first.name != second.name else str(run.folder), points=_losses(run), colour=colour)
        for run, colour in zip(comparison.runs, (0, 1), strict=True)
    ]
    steps = [(step, part) for step, part in _relatives(comparison) if math.isfinite(part)]
    apart = [Line(name="relative difference", points=steps, colour=4)]
    rows = [
        [Cell(f"<code>{escape(key)}</code>", html=True), Cell(str(one)), Cell(str(other))]
        for key, (one, other) in comparison.differing.items()
    ]
    heads = [("key", False), (first.name, False), (second.name, False)]
    configurations = table(heads, rows) if rows else "<p>The same but for run.folder.</p>"
    pace = [
        [Cell(name), *(Cell(short(run.median(name)), True) for run in comparison.runs)]
        for name in ("seconds", "tokens_per_second", "tflops", "mfu", "hfu", "memory")
    ]
    cards = {
        "Losses": line_chart(curves, "step", "velocity MSE", from_zero=True, width=WIDE),
        "How far apart": line_chart(apart, "step", "relative difference of losses", from_zero=True, width=WIDE),
        "Configurations": configurations,
        "Medians of a step": table([("", False), (first.name, True), (second.name, True)], pace),
    }
    body = f"<h1>{escape(title)}</h1><p>{sentences}</p>"
    body += "".join(f'<h2>{name}</h2><div class="card">{card}</div>' for name, card in cards.items())
    write_text(out, document(title, body, f"contentv report of {first.folder} and {second.folder}"))


def _losses(run: RunFacts) -> Sequence[tuple[float, float]]:
    points = [(line["step"], line["loss"]) for line in run.training]
    return running_mean(points) or points


def _relatives(comparison: Comparison) -> list[tuple[float, float]]:
    one, other = ({line["step"]: line["loss"] for line in run.training} for run in comparison.runs)
    return [(step, relative(one[step], other[step])) for step in comparison.shared]


def _strict(value: Any) -> Any:
    """JSON has no NaN and no infinity: their names stand for them."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
