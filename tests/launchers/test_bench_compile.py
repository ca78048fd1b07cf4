"""`contentv bench compile`: every kernel fits its chip, and a gate that sees nothing would be seen."""

import json
import os
from dataclasses import replace

import pytest

from contentv.engine import compile_gate
from contentv.engine.compile_gate import CONTROLS, Row, judged
from contentv.launchers import bench

COLUMNS = {"op", "kernel", "config", "arch", "registers", "stack_bytes", "spill_loads", "spill_stores", "shared_bytes"}
COLUMNS |= {"matrix_instructions", "ok", "negative_control", "report", "reason"}

pytestmark = pytest.mark.skipif(not compile_gate.has_triton(), reason="triton is not installed")


@pytest.fixture(autouse=True)
def workers_find_the_checkout(monkeypatch):
    """A spawned worker takes its parent's sys.path, and not PYTHONPATH, where the tests' own link lies."""
    monkeypatch.syspath_prepend(os.environ["PYTHONPATH"].partition(os.pathsep)[0])


def call(capfd, *options):
    status = bench.main(["compile", *options])
    printed = capfd.readouterr()
    return status, printed.out, printed.err


def rows_of(capfd, *options):
    status, out, err = call(capfd, "--json", *options)
    rows = json.loads(out)
    assert all(row.keys() == COLUMNS for row in rows)
    fell_short = [row for row in rows if not row["ok"] and not row["negative_control"] and not row["report"]]
    assert status == bool(fell_short), err
    return rows, fell_short


def test_small_kernels_fit_and_every_control_falls_short(capfd):
    rows, fell_short = rows_of(capfd, "--operation", "mlp_gelu", "--operation", "gradient_norm", "--arch", "sm_90")
    assert not fell_short, fell_short
    controls = {row["kernel"]: row["reason"] for row in rows if row["op"] == CONTROLS and row["config"] != ""}
    assert all(row["op"] == CONTROLS and not row["ok"] for row in rows if row["negative_control"])
    reasons = " ".join(row["reason"] for row in rows if row["negative_control"])
    for words in ("values fall out of the registers", "more shared memory than the 232448", "promised HGMMA is not"):
        assert words in reasons, controls
    assert {row["op"] for row in rows} >= {"mlp_gelu", "gradient_norm"}
    assert all(row["registers"] > 0 for row in rows if row["ok"])


@pytest.mark.slow
def test_every_kernel_fits_every_chip(capfd):
    rows, fell_short = rows_of(capfd)
    assert not fell_short, fell_short
    assert {row["arch"] for row in rows} >= {"sm_80", "sm_90", "sm_100", "gfx942"}
    assert all(row["report"] == (row["arch"] == "gfx942") for row in rows)


def planted(monkeypatch, *rows):
    monkeypatch.setattr(compile_gate, "gate", lambda *_: list(rows))


GOOD = Row(op="mlp_gelu", kernel="forward", config="bf16", arch="sm_90", registers=40, ok=True)
CONTROL = replace(GOOD, op=CONTROLS, ok=False, reason="values fall out of the registers", negative_control=True)


def test_what_falls_short_fails_the_gate_and_is_named(monkeypatch, capfd):
    spilling = replace(GOOD, ok=False, spill_loads=3, reason="values fall out of the registers")
    for rows, status, words in (
        ([GOOD, CONTROL], 0, ["2 rows", "0 fail"]),
        ([GOOD, spilling], 1, ["1 fail", "mlp_gelu: forward (bf16) on sm_90: values fall out of the registers"]),
        ([GOOD, replace(CONTROL, ok=True)], 1, ["a negative control passed: the gate is blind"]),
        ([replace(spilling, arch="gfx942", report=True)], 0, ["0 fail"]),
    ):
        planted(monkeypatch, *rows)
        got, out, err = call(capfd)
        assert got == status and all(each in out + err for each in words), out + err


def figures(**changed):
    nothing = {"registers": 9, "stack_bytes": 0, "spill_loads": 0, "spill_stores": 0, "shared_bytes": 0}
    return nothing | {"matrix_instructions": {}} | changed


@pytest.mark.parametrize(
    ("changed", "arch", "promised", "words"),
    [
        ({}, "sm_80", (), ""),
        ({"stack_bytes": 8}, "sm_90", (), "out of the registers"),
        ({"spill_loads": 1}, "sm_90", (), "out of the registers"),
        ({"spill_stores": 1}, "sm_90", (), "out of the registers"),
        ({"shared_bytes": 163 * 1024}, "sm_80", (), ""),
        ({"shared_bytes": 163 * 1024 + 1}, "sm_80", (), "166912 bytes of sm_80"),
        ({"shared_bytes": 227 * 1024}, "sm_100", (), ""),
        ({"matrix_instructions": {"HGMMA": 4}}, "sm_90", ("HGMMA",), ""),
        ({"matrix_instructions": {"HGMMA": 4}}, "sm_90", ("HGMMA", "UTMALDG"), "promised UTMALDG is not there"),
        ({"matrix_instructions": {"HMMA": 4, "HGMMA": 0}}, "sm_90", ("HGMMA",), "promised HGMMA is not there"),
    ],
)
def test_the_verdict(changed, arch, promised, words):
    verdict = judged(figures(**changed), arch, promised)
    assert verdict["ok"] == (not words) and words in verdict["reason"]


def test_wrong_options_are_refused_before_anything_is_compiled(capfd):
    for options, words in ((("--arch", "sm_70"), "sm_80"), (("--operation", "softmax"), "adamw")):
        with pytest.raises(SystemExit) as ended:
            bench.main(["compile", *options])
        assert ended.value.code == 2 and words in capfd.readouterr().err
