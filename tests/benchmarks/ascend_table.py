"""Writes results/ascend_lowering.json and the table of docs/ascend.md:

    contentv bench compile --target ascend --json | python tests/benchmarks/ascend_table.py

Beside the gate's rows: each kernel's error in Triton's interpreter against the reference in fp64, on the odd case
and, where heads rotate, on one that does.
"""

import datetime
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor

from contentv.engine import ascend_environment
from contentv.kernels.case import Case
from contentv.kernels.ranks import OPERATIONS, RANKS
from contentv.kernels.registry import TABLE
from tests.kernels import interpreter
from tests.kernels.conftest import distances, run

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "tests" / "benchmarks" / "results" / "ascend_lowering.json"
PAGE = ROOT / "docs" / "ascend.md"
BEGIN, END = "<!-- table: tests/benchmarks/ascend_table.py -->", "<!-- end of table -->"
SCHEMAS = "2.13, 2.11"
"""Of torch_npu, to which tests/ascend/test_schemas.py binds every call of npu_fused."""
DIFFERENTIABLE = {
    "joint_attention": ("q_BHQE", "k_BHJE", "v_BHJE"),
    "qk_norm_rope": ("q_SBHE", "k_SBHE", "q_gain_E", "k_gain_E"),
    "modulated_norm": ("x_SBD", "shift_BD", "scale_BD"),
    "gated_residual": ("x_SBD", "gate_BD", "update_SBD"),
    "gated_residual_norm": ("x_SBD", "gate_BD", "update_SBD", "shift_BD", "scale_BD"),
    "mlp_gelu": ("hidden_SBM", "bias_M"),
    "flow_loss": ("velocity_SBP",),
}


def error(op: str, dtype: torch.dtype) -> float:
    """Largest relative error, in the L2 norm, of all outputs and gradients: of the odd case, and of the odd one that
    rotates where there is one."""
    cases = import_module(f"contentv.kernels.{op}.cases")
    found = [
        next((each for each in cases.CASES if each.name.startswith(name)), None) for name in ("odd", "odd, rotated")
    ]
    return max(_error(op, dtype, cases, case) for case in found if case)


def _error(op: str, dtype: torch.dtype, cases, case: Case) -> float:
    ours, reference = TABLE[op, "npu_triton"].load(), TABLE[op, "reference"].load()
    if op in ("gradient_norm", "adamw"):
        got, truth = (_in_lists(op, function, cases.inputs(case, dtype=dtype), wide)
                      for function, wide in ((ours, False), (reference, True)))  # fmt: skip
    else:
        names = DIFFERENTIABLE.get(op, ())
        got = run(ours, cases.inputs(case, dtype=dtype), names, None)
        truth = run(reference, cases.inputs(case, dtype=dtype), names, torch.float64)
    return max(distances(got[part], truth[part])[0] for part in truth)


def _in_lists(op: str, function: Callable, arguments: dict, wide: bool) -> dict[str, Tensor]:
    """Of what takes lists; adamw's results are the state it changed."""
    if wide:
        arguments = {
            name: [each.double() for each in value] if isinstance(value, list) else value
            for name, value in arguments.items()
        }
    returned = function(**arguments)
    if op == "gradient_norm":
        return {"squared": returned.double()}
    changed = ("masters", "moments1", "moments2", "emas")
    return {name: torch.cat([each.flatten() for each in arguments[name]]).double() for name in changed}


def table(rows: list[dict], errors: dict[str, dict[str, float]]) -> str:
    """A line an operation: npu_triton's lowering and errors, npu_fused's schemas, what the simulated device ran."""
    lines = [
        "| operation | backends | kernels x configurations | lowered on | unified buffer, bytes | error fp32 "
        "| error bf16 | schemas | simulated | hardware |",
        "| --- " * 10 + "|",
    ]
    for op in OPERATIONS:
        backends = RANKS["npu"][op]
        fused = "npu_fused" in backends
        names = ", ".join(name for name in backends if name != "reference") or "reference"
        rest = f"{SCHEMAS if fused else 'none called'} | {'npu_fused' if fused else 'torch'} | never |"
        if op not in errors:
            lines.append(f"| {op} | {names} | none of ours | - | - | - | - | {rest}")
            continue
        found = errors[op]
        own = [row for row in rows if row["op"] == op]
        chips = sorted({row["chip"] for row in own})
        passed = [chip for chip in chips if all(row["ok"] for row in own if row["chip"] == chip)]
        counts = f"{len({row['kernel'] for row in own})}, {len(own) // len(chips)} in all"
        used = [row["unified_buffer_bytes"] for row in own if row["ok"]]
        where = "all four" if passed == chips and len(chips) == 4 else ", ".join(passed) or "none"
        sizes = f"{min(used):,} to {max(used):,}"
        wrong = f"{found['float32']:.1e} | {found['bfloat16']:.1e}"
        lines.append(f"| {op} | {names} | {counts} | {where} | {sizes} | {wrong} | {rest}")
    return "\n".join(lines)


def main() -> None:
    rows = json.load(sys.stdin)
    interpreter.repair()
    kinds = (torch.float32, torch.bfloat16)
    errors = {
        op: {str(kind).removeprefix("torch."): error(op, kind) for kind in kinds}
        for op in OPERATIONS
        if (op, "npu_triton") in TABLE
    }
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    python = ascend_environment.python(lambda text: print(text, file=sys.stderr))
    result = {
        "date": datetime.date.today().isoformat(),
        "commit": commit.strip()[:12],
        "command": "contentv bench compile --target ascend --json | python tests/benchmarks/ascend_table.py",
        "versions": {"python": sys.version.split()[0], **ascend_environment.versions(python)},
        "interpreter_errors": errors,
        "rows": rows,
    }
    head = {name: value for name, value in result.items() if name != "rows"}
    written = json.dumps(head, indent=1)[:-2] + ',\n "rows": [\n  '
    RESULT.write_text(written + ",\n  ".join(json.dumps(row) for row in rows) + "\n ]\n}\n")
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(rows, errors)}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
