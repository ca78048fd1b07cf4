"""`contentv bench compile [options]`: every kernel x configuration as machine code, without a GPU.

Triton kernels for sm_80, sm_90, sm_100 and gfx942, csrc/cuda by nvcc. Exit status 1 if a row falls short: values
outside the registers, more shared memory than the chip has, promised instructions missing. gfx942 rows decide nothing;
negative controls must fall short.

--target ascend: the Triton-Ascend kernels through BiShengIR's memory planning, up to where CANN's hivmc would start, in
an environment of its own that is made on first use. No binary is made, nothing runs.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict

from ..kernels.ranks import OPERATIONS
from .command_line import FAILURE, tell

COLUMNS = ("op", "kernel", "config", "arch", "registers", "stack_bytes", "spill_loads", "spill_stores", "shared_bytes")
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")
ASCEND_COLUMNS = ("op", "kernel", "config", "chip", "reached", "seconds", "unified_buffer_bytes", "stated_bytes")
CHIPS = ("Ascend910B1", "Ascend910B3", "Ascend910B4", "Ascend910_9382")


def add_parser(commands) -> None:
    """Adds `compile` to the commands of `contentv bench`."""
    parser = commands.add_parser(
        "compile", help="every kernel as machine code, without a GPU", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.set_defaults(run=run)
    parser.add_argument(
        "--operation", action="append", choices=OPERATIONS, metavar="NAME", help="this one's kernels only; repeatable"
    )
    parser.add_argument("--target", choices=("gpu", "ascend"), default="gpu", help="what for; default: gpu")
    parser.add_argument(
        "--chip", action="append", choices=CHIPS, help="with --target ascend: this one only; repeatable"
    )
    parser.add_argument(
        "--arch", action="append", choices=ARCHITECTURES, help="this chip only; repeatable; default: all of them"
    )
    parser.add_argument("--json", action="store_true", help="one JSON value on stdout: the list of rows")


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns its exit status."""
    other = {"gpu": "chip", "ascend": "arch"}[options.target]
    if getattr(options, other):
        raise ValueError(f"--{other} is no option of --target {options.target}: leave one of them out")
    return _run_ascend(options) if options.target == "ascend" else _run_gpu(options)


def _run_ascend(options: argparse.Namespace) -> int:
    from ..engine import ascend_gate

    started = time.perf_counter()
    rows = ascend_gate.gate(options.operation or OPERATIONS, options.chip or CHIPS, show, tell)
    return _report(options, rows, ASCEND_COLUMNS, "chip", "message", started)


def _run_gpu(options: argparse.Namespace) -> int:
    # Only now: torch takes seconds, and a mistake should be told at once.
    from ..engine import compile_gate

    if (reason := compile_gate.cuda_refusal()) is not None:
        tell(f"csrc/cuda is not compiled: {reason}")
    started = time.perf_counter()
    rows = compile_gate.gate(options.operation or OPERATIONS, options.arch or ARCHITECTURES, show)
    return _report(options, rows, COLUMNS, "arch", "reason", started)


def _report(options: argparse.Namespace, rows, columns: tuple[str, ...], chip: str, why: str, started: float) -> int:
    failed = [row for row in rows if row.fails_the_gate]
    if options.json:
        print(json.dumps([asdict(row) for row in rows]))
    else:
        print(table(rows, columns, why))
    for row in failed:
        said = "a negative control passed: the gate is blind" if row.negative_control else getattr(row, why)
        tell(f"{row.op}: {row.kernel} ({row.config}) on {getattr(row, chip)}: {said}")
    controls = sum(row.negative_control for row in rows)
    summary = f"{len(rows)} rows, {controls} of them negative controls, {len(failed)} fail the gate"
    print(f"{summary}; {time.perf_counter() - started:.0f} s", file=sys.stderr if options.json else sys.stdout)
    return FAILURE if failed else 0


def show(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done}/{total} compiled", end="\n" if done == total else "", file=sys.stderr, flush=True)


def table(rows, columns: tuple[str, ...], why: str) -> str:
    """The rows in columns, right-aligned where they are numbers."""
    cells = [(*columns, "matrix instructions" if columns is COLUMNS else "", "")]
    for row in rows:
        found = " ".join(f"{name} {count}" for name, count in getattr(row, "matrix_instructions", {}).items())
        said = "ok" if row.ok else getattr(row, why)
        verdict = "report" if getattr(row, "report", False) else "control" if row.negative_control else said
        cells.append((*(str(getattr(row, name)) for name in columns), found, verdict))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(_aligned(cell, width) for cell, width in zip(line, widths, strict=True)) for line in cells)
    return "\n".join(line.rstrip() for line in lines)


def _aligned(cell: str, width: int) -> str:
    return cell.rjust(width) if cell.isdigit() else cell.ljust(width)
