"""Which nodes are bad, from what their ranks measured (engine/node_speed.py). Imports no torch.

node_check.jsonl in the run folder keeps every figure, one JSON object a line: attempt, job, node, rank, device, name
(its driver's), ranks_here (on the node), ok, and each figure by name. What is expected is the upper quartile over this
and all earlier checks of the run: what good nodes of this kind do, even where half of those at hand are slow. Where all
are slow alike, the published figures of the device tell (engine/node_floor.py).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

from ..parallel.durable import write_text
from . import json_lines
from .node_floor import FIGURES, Floor, below_floor, floor_lines
from .run_files import NODES_FILE

ENOUGH = 0.6
"""A node is bad below this share of what is expected. Boost clocks and neighbours move healthy ones by a quarter."""
ENOUGH_OF_CPUS = 0.1
"""The same where ranks compute on CPUs, which they share with whatever else runs: only what is broken is found."""
PREFIX = "node_check-figures-"
MARK = "node_check-began-"
"""And rank-node: an empty file of a rank that has come as far as to its device."""
NAMED = 8
"""Nodes that are named one by one where a check did not end; a hung file system silences hundreds."""


@dataclass(frozen=True, kw_only=True)
class Unended:
    """A check that was ended from outside at its limit, and what should have answered."""

    minutes: int
    nodes: tuple[str, ...]
    ranks_per_node: int


@dataclass(frozen=True, kw_only=True)
class Verdict:
    bad: tuple[str, ...]
    """Names of the bad nodes of this job, those of its earlier attempts included: they stay excluded."""
    lines: tuple[str, ...]
    """What a person is told."""
    unended: str = ""
    """Why there is no verdict: the check reached its limit, or most ranks hung, and no node can be blamed for it."""


def keep(folder: Path, record: dict) -> None:
    """What one rank measured, or the error it met, for `judge`: node, rank, device, error, and the figures."""
    write_text(folder / f"{PREFIX}{record['rank']}.json", json.dumps(record) + "\n")


def mark(folder: Path, *, node: str, rank: int) -> None:
    """Says that this rank is about to ask its device; a device that hangs leaves no more than this."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{MARK}{rank}-{node}").touch()


def has_figures(folder: Path, rank: int) -> bool:
    return (folder / f"{PREFIX}{rank}.json").is_file()


def judge(
    run: Path, logs: Path, *, attempt: int, job: str, asked: bool = False, floor: Floor | None = None,
    unended: Unended | None = None,
) -> Verdict:  # fmt: skip
    """Reads what the ranks left in `logs`, keeps it in the run folder, and compares; `asked`: it was cut short."""
    earlier = [record for record in json_lines.read(run / NODES_FILE) if {"job", "node", "ok"} <= record.keys()]
    now = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(logs.glob(f"{PREFIX}*.json"))]
    hung = [] if asked else silent(logs, now)
    is_most = len(hung) > len(now)
    if not is_most:
        now += _unanswering(hung, len(now))
    records = [{"attempt": attempt, "job": job, **record} for record in now]
    expected = {name: expectation(name, [*earlier, *records]) for name in FIGURES}
    floor = floor or Floor()
    bad: dict[str, str] = {}
    for record in records:
        fault = shortfall(record, expected) or (below_floor(record, floor) if floor.excludes else None)
        record["ok"] = fault is None
        if fault:
            bad.setdefault(record["node"], f"rank {record['rank']}: {fault}")
    json_lines.append(run / NODES_FILE, *records)
    known = {record["node"] for record in earlier if record["job"] == job and not record["ok"]}
    lines = [f"node check: {node} is bad: {why}" for node, why in bad.items()]
    if not floor.excludes:
        lines += [f"warning: node check: {line}" for line in floor_lines(records, floor)]
    summary = ", ".join(f"{name} {value:.4g} {FIGURES[name]}" for name, value in expected.items() if value)
    measured = sum(not record.get("error") for record in records)
    summary = summary or "nothing: no rank measured anything"
    lines.append(f"node check: {measured} of {len(records)} ranks measured; expected {summary}")
    why = ""
    if not bad and not asked and unended:
        why = unanswered(logs, unended)
    elif not bad and is_most:
        ranks = len(hung) + len(now)
        why = f"of {ranks} ranks in the node check {len(hung)} began and measured nothing: too many for bad nodes"
    return Verdict(bad=tuple(sorted(known | set(bad))) if bad else (), lines=tuple(lines), unended=why)


def silent(logs: Path, measured: Sequence[dict]) -> list[tuple[int, str]]:
    """Rank and node of those that began and measured nothing, though others did and waited for them.

    None where a rank met an error: srun ended the others for its sake, whatever they were about to measure.
    """
    if not measured or any(record.get("error") for record in measured):
        return []
    known = {record["rank"] for record in measured}
    return [(rank, node) for rank, node in began(logs) if rank not in known]


def _unanswering(ranks: Sequence[tuple[int, str]], others: int) -> list[dict]:
    """Their records."""
    error = f"its device did not answer: it began and measured nothing, while {others} others did"
    return [{"node": node, "rank": rank, "device": None, "error": error} for rank, node in ranks]


def began(logs: Path) -> list[tuple[int, str]]:
    """Rank and node of all that have come as far as to their device."""
    parts = [path.name.removeprefix(MARK).partition("-") for path in sorted(logs.glob(f"{MARK}*"))]
    return [(int(rank), node) for rank, _, node in parts]


def unanswered(logs: Path, check: Unended) -> str:
    """One sentence: which ranks of which nodes left nothing, and how far each node's came."""
    marked = began(logs)
    faults = []
    for node in check.nodes:
        here = sorted(rank for rank, its in marked if its == node)
        hung = [str(rank) for rank in here if not has_figures(logs, rank)]
        if hung:
            faults.append(f"on {node} the device of rank {', '.join(hung)} did not answer")
        if missing := check.ranks_per_node - len(here):
            faults.append(f"on {node} {missing} of {check.ranks_per_node} ranks did not come as far as their device")
    said = "; ".join(faults[:NAMED]) + (f"; and {len(faults) - NAMED} more" if len(faults) > NAMED else "")
    said = (
        said or "every rank has measured by itself, but the sum over each node's ranks, or their meeting, did not end"
    )
    return f"the node check did not end within {check.minutes} min: {said}"


def shortfall(record: dict, expected: dict[str, float | None]) -> str | None:
    """Why a rank's figures are too low; None if they are not."""
    if record.get("error"):
        return record["error"]
    for name, unit in FIGURES.items():
        found, usual = record.get(name), expected[name]
        enough = ENOUGH_OF_CPUS if record["device"] == "cpu" else ENOUGH
        if found is not None and usual is not None and found < enough * usual:
            return f"{name} is {found:.4g} {unit}, {found / usual:.0%} of the usual {usual:.4g}"
    return None


def expectation(name: str, records: Sequence[dict]) -> float | None:
    values = [record[name] for record in records if record.get(name) is not None]
    return quantiles([*values, *values], n=4, method="inclusive")[2] if values else None
