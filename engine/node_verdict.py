"""Which nodes are bad, from what their ranks measured (engine/node_speed.py). Imports no torch.

node_check.jsonl in the run folder keeps every figure, one JSON object a line: attempt, job, node, rank, device, ok, and
each figure by name. What is expected is the upper quartile over this and all earlier checks of the run: what good nodes
of this kind do, even where half of those at hand are slow.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

from ..parallel.durable import write_text
from . import json_lines
from .run_files import NODES_FILE

FIGURES = {"matmul_tflops": "TFLOP/s", "copy_gb_per_s": "GB/s", "all_reduce_gb_per_s": "GB/s"}
"""Higher is better; all-reduce among the ranks of one node."""
ENOUGH = 0.6
"""A node is bad below this share of what is expected. Boost clocks and neighbours move healthy ones by a quarter."""
ENOUGH_OF_CPUS = 0.1
"""The same where ranks compute on CPUs, which they share with whatever else runs: only what is broken is found."""
PREFIX = "node_check-figures-"
MARK = "node_check-began-"
"""And rank-node: an empty file of a rank that has come as far as to its device."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    bad: tuple[str, ...]
    """Names of the bad nodes of this job, those of its earlier attempts included: they stay excluded."""
    lines: tuple[str, ...]
    """What a person is told."""


def keep(folder: Path, record: dict) -> None:
    """What one rank measured, or the error it met, for `judge`: node, rank, device, error, and the figures."""
    write_text(folder / f"{PREFIX}{record['rank']}.json", json.dumps(record) + "\n")


def mark(folder: Path, *, node: str, rank: int) -> None:
    """Says that this rank is about to ask its device; a device that hangs leaves no more than this."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{MARK}{rank}-{node}").touch()


def has_figures(folder: Path, rank: int) -> bool:
    return (folder / f"{PREFIX}{rank}.json").is_file()


def judge(run: Path, logs: Path, *, attempt: int, job: str, asked: bool = False) -> Verdict:
    """Reads what the ranks left in `logs`, keeps it in the run folder, and compares; `asked`: it was cut short."""
    earlier = [record for record in json_lines.read(run / NODES_FILE) if {"job", "node", "ok"} <= record.keys()]
    now = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(logs.glob(f"{PREFIX}*.json"))]
    if not asked:
        now += silent(logs, now)
    records = [{"attempt": attempt, "job": job, **record} for record in now]
    expected = {name: expectation(name, [*earlier, *records]) for name in FIGURES}
    bad: dict[str, str] = {}
    for record in records:
        fault = shortfall(record, expected)
        record["ok"] = fault is None
        if fault:
            bad.setdefault(record["node"], f"rank {record['rank']}: {fault}")
    json_lines.append(run / NODES_FILE, *records)
    known = {record["node"] for record in earlier if record["job"] == job and not record["ok"]}
    lines = [f"node check: {node} is bad: {why}" for node, why in bad.items()]
    summary = ", ".join(f"{name} {value:.3g} {FIGURES[name]}" for name, value in expected.items() if value)
    measured = sum(not record.get("error") for record in records)
    summary = summary or "nothing: no rank measured anything"
    lines.append(f"node check: {measured} of {len(records)} ranks measured; expected {summary}")
    return Verdict(bad=tuple(sorted(known | set(bad))) if bad else (), lines=tuple(lines))


def silent(logs: Path, measured: Sequence[dict]) -> list[dict]:
    """Records of the ranks that began and measured nothing, though most did and waited for them.

    None where a rank met an error: srun ended the others for its sake, whatever they were about to measure.
    """
    known = {record["rank"] for record in measured}
    began = [path.name.removeprefix(MARK).partition("-") for path in sorted(logs.glob(f"{MARK}*"))]
    missing = [(int(rank), node) for rank, _, node in began if int(rank) not in known]
    if len(missing) > len(measured) or any(record.get("error") for record in measured):
        return []
    error = f"its device did not answer: it began and measured nothing, while {len(measured)} others did"
    return [{"node": node, "rank": rank, "device": None, "error": error} for rank, node in missing]


def shortfall(record: dict, expected: dict[str, float | None]) -> str | None:
    """Why a rank's figures are too low; None if they are not."""
    if record.get("error"):
        return record["error"]
    for name, unit in FIGURES.items():
        found, usual = record.get(name), expected[name]
        enough = ENOUGH_OF_CPUS if record["device"] == "cpu" else ENOUGH
        if found is not None and usual is not None and found < enough * usual:
            return f"{name} is {found:.3g} {unit}, {found / usual:.0%} of the usual {usual:.3g}"
    return None


def expectation(name: str, records: Sequence[dict]) -> float | None:
    values = [record[name] for record in records if record.get(name) is not None]
    return quantiles([*values, *values], n=4, method="inclusive")[2] if values else None
