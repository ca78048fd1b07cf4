"""What a device really reaches, call by call, as somebody measured it: `contentv bench` read for the planner.

    contentv bench kernels --json > mine.json
    contentv plan RECIPE --world 64 --hardware NAME --efficiencies mine.json

Of every operation the backend that a run would take: the one it wishes for, else the first of kernels/ranks.py that was
measured.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import inf
from pathlib import Path
from typing import Any, Literal, get_args

from ...kernels.config import AUTO
from ...kernels.ranks import RANKS
from ...parallel.reading import read_json
from ..config import RunConfig
from ..hardware import Hardware, hardware_named
from ..plain import build
from .rate import Rate, rate_of

Figure = tuple[Rate, str]
"""A rate in operations or bytes a second, and where it is from."""

FIGURES = {
    ("matrix_product", "forward"): "products",
    ("joint_attention", "forward"): "attention_forward",
    ("joint_attention", "backward"): "attention_backward",
    **{
        (op, direction): "memory"
        for op in ("qk_norm_rope", "modulated_norm", "gated_residual", "gated_residual_norm", "mlp_gelu")
        for direction in ("forward", "backward")
    },
    ("flow_loss", "backward"): "memory",
    ("gradient_norm", "forward"): "optimizer_memory",
    ("adamw", "forward"): "optimizer_memory",
}
"""(operation, direction) -> figure of `Rates`. Of noise and loss, which are called once a microbatch, only what is one
pass over memory and no more: it tells what few bytes take."""
Way = Literal["sums", "shards", "exchanges", "neighbours"]
WAYS: tuple[Way, ...] = get_args(Way)
"""How a group sends: all-reduce; all-gather and reduce-scatter; all-to-all; to the next rank."""
LINKS = {"node": "link", "nodes": "network"}
"""What messages were measured over: engine/message_bench.py says which."""
IN_OPERATIONS = ("products", "attention_forward", "attention_backward")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured call, as engine/kernel_bench.py and message_bench.py tell it."""

    op: str
    case: str
    direction: str
    backend: str
    ms: float
    gbytes: float
    gflops: float

    @property
    def figure(self) -> str | None:
        """Of `Rates`, or one of its links in one way; None where the planner does not ask for it."""
        if self.op in WAYS and self.direction in LINKS:
            return f"{LINKS[self.direction]}_{self.op}"
        return FIGURES.get((self.op, self.direction))

    @property
    def work(self) -> float:
        """Of a call: operations, or bytes."""
        return 1e9 * (self.gflops if self.figure in IN_OPERATIONS else self.gbytes)


@dataclass(frozen=True, kw_only=True)
class Efficiencies:
    """What was measured, by the names in `Rates`; of messages link_sums, network_shards and so on."""

    figures: Mapping[str, Figure]
    message_seconds: Mapping[Way, float] = field(default_factory=dict)
    """Of the shortest message of each way that was measured."""

    @property
    def replaced(self) -> set[str]:
        """Figures of the table that nothing asks for any more."""
        return {link for link in LINKS.values() if all(f"{link}_{way}" in self.figures for way in WAYS)}


def read_efficiencies(paths: Sequence[str], config: RunConfig, hardware: Hardware) -> Efficiencies:
    """Of files that `contentv bench kernels --json` or `bench messages --json` wrote; of a figure in two the last.

    Raises:
        ValueError: a file that is none of these, or was measured on another device or in another precision.
    """
    figures: dict[str, Figure] = {}
    starts: dict[Way, float] = {}
    for path in paths:
        try:
            content, rows = _read(path, hardware)
            starts |= {way: ms / 1e3 for way, ms in shortest(rows).items()}
            where = f"{Path(path).name}, {content['device']}, {content['date']}"
            figures |= _figures(rows, _preferred(content, config), where)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"--efficiencies {path}: {getattr(error, 'strerror', None) or error}; give what `contentv bench "
                "kernels --json` or `contentv bench messages --json` printed on such a device"
            ) from error
    return Efficiencies(figures=figures, message_seconds=starts)


def rates_by_figure(rows: Iterable[Row], preferred: Mapping[str, Sequence[str]]) -> dict[str, Rate]:
    """Of each operation the first backend of `preferred` that was measured; of messages what they take more than the
    shortest; octave by octave of a call's work."""
    rows = [row for row in rows if row.figure]
    starts = shortest(rows)
    calls: dict[str, list[tuple[float, float]]] = {}
    for op in dict.fromkeys(row.op for row in rows):
        its = [row for row in rows if row.op == op]
        measured = {row.backend for row in its}
        taken = next((backend for backend in preferred.get(op, measured) if backend in measured), None)
        for row in its:
            if op in WAYS and row.ms > 2 * starts[op]:
                calls.setdefault(row.figure, []).append((row.work, (row.ms - starts[op]) / 1e3))
            elif op not in WAYS and row.backend == taken:
                calls.setdefault(row.figure, []).append((row.work, row.ms / 1e3))
    return {figure: rate_of(each) for figure, each in calls.items()}


def shortest(rows: Iterable[Row]) -> dict[Way, float]:
    """Milliseconds of the quickest message of each way."""
    ways: dict[Way, float] = {}
    for row in rows:
        if row.op in WAYS and row.figure:
            ways[row.op] = min(row.ms, ways.get(row.op, row.ms))
    return ways


def in_words(rate: Rate, unit: str, form: str, what: str) -> str:
    """ "at 0.62 to 0.74 of the peak by the operations of a call (5 points, 1e+09 to 2e+12)"."""
    (first, low), *_, (last, _) = (*rate.points[:1], *rate.points)
    if len(rate.points) == 1:
        return f"at {low:{form}}{what}, whatever the shape (one point)"
    low = min(each for _, each in rate.points)
    return (
        f"at {low:{form}} to {rate.best:{form}}{what} by the {unit} of a call ({len(rate.points)} points, "
        f"{first:.1e} to {last:.1e})"
    )


def _read(path: str, hardware: Hardware) -> tuple[dict[str, Any], list[Row]]:
    """A file's content, and of its rows those that were measured."""
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
        raise ValueError("it has no rows")
    device, _ = (build(str, content.get(key), key, "it") for key in ("device", "date"))
    known = hardware_named(device)
    if known is not None and known != hardware:
        raise ValueError(f"it was measured on {device}, which is {known.key}, and --hardware is {hardware.key}")
    rows = [_row(row, number) for number, row in enumerate(content["rows"]) if not _is_refused(row)]
    return content, rows


def _preferred(content: dict[str, Any], config: RunConfig) -> dict[str, Sequence[str]]:
    """Of every operation the backends that a run like this would take, the first choice first."""
    if all(isinstance(row, dict) and row.get("op") in WAYS for row in content["rows"]):
        return {}
    dtype, kind = (build(str, content.get(key), key, "it") for key in ("dtype", "device_type"))
    if dtype != config.trainer.precision:
        raise ValueError(f"it was measured in {dtype}, and trainer.precision is {config.trainer.precision}")
    if kind not in RANKS:
        raise ValueError(f"its device_type is {kind!r}; it must be one of {', '.join(RANKS)}")
    return {op: RANKS[kind][op] if wish == AUTO else (wish,) for op, wish in config.kernels.wishes().items()}


def _figures(rows: list[Row], preferred: Mapping[str, Sequence[str]], where: str) -> dict[str, Figure]:
    rates = rates_by_figure(rows, preferred)
    if not rates:
        raise ValueError("it has no operation that the planner asks for, by a backend that this run would take")
    return {figure: (rate, f"{_told(figure, rate)}: measured: {where}") for figure, rate in rates.items()}


def _is_refused(row: Any) -> bool:
    return isinstance(row, dict) and row.get("ms") is None


def _row(plain: Any, number: int) -> Row:
    known = [field.name for field in fields(Row)]
    wanted = {key: plain[key] for key in known if key in plain} if isinstance(plain, dict) else plain
    row = build(Row, wanted, f"rows[{number}]", "it")
    if row.figure and not (0 < row.ms < inf and 0 < row.work < inf):
        raise ValueError(f"rows[{number}] has {row.ms:g} ms and {row.work:g} of work; both must be above 0")
    return row


def _told(figure: str, rate: Rate) -> str:
    if figure in IN_OPERATIONS:
        return in_words(rate * 1e-12, "operations", ".3g", " TFLOP/s")
    return in_words(rate * 1e-9, "bytes", ".3g", " GB/s")
