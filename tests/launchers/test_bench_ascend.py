"""`contentv bench compile --target ascend`: every kernel reaches BiShengIR's memory plan, a blind gate is seen."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from contentv.engine import ascend_environment, ascend_gate
from contentv.engine.ascend_gate import CONTROLS, Row
from contentv.engine.ascend_lowering import PASSED, differences, judged, meaningful, takes_turns, unified_buffer
from contentv.kernels.ascend_memory import CHIPS
from contentv.kernels.ranks import OPERATIONS
from contentv.kernels.registry import TABLE
from contentv.launchers import bench

FIELDS = {"op", "kernel", "config", "chip", "ok", "reached", "message", "seconds", "negative_control"}
FIELDS |= {"unified_buffer_bytes", "stated_bytes", "scattered_accesses", "takes_turns", "one_vector_core"}


def call(capfd, *options):
    status = bench.main(["compile", "--target", "ascend", *options])
    printed = capfd.readouterr()
    return status, printed.out, printed.err


@pytest.mark.ascend
@pytest.mark.timeout(600)
def test_every_kernel_reaches_the_memory_plan_and_every_control_is_refused(capfd):
    status, out, err = call(capfd, "--json")
    rows = json.loads(out)
    assert status == 0, err
    assert all(row.keys() == FIELDS for row in rows)
    kernels = [row for row in rows if not row["negative_control"]]
    assert {row["op"] for row in kernels} == {op for op in OPERATIONS if (op, "npu_triton") in TABLE}
    assert {(row["op"], row["chip"]) for row in kernels} == {(row["op"], chip) for row in kernels for chip in CHIPS}
    for row in kernels:
        assert row["ok"] and row["reached"] == "memory plan" and row["message"] == PASSED, row
        assert 0 < row["unified_buffer_bytes"] <= (row["stated_bytes"] or 192 * 1024), row
    refused = " ".join(row["message"] for row in rows if row["negative_control"])
    for words in (
        "ub overflow",
        "but got fp64",
        "no matrix with strides",
        "take turns",
        "does everything",
        "and states 4096",
    ):
        assert words in refused
    assert {row["reached"] for row in rows if row["negative_control"]} == {"nothing", "linalg", "memory plan"}


GOOD = Row(
    op="mlp_gelu", kernel="_forward", config="bf16", chip="Ascend910B3", ok=True, reached="memory plan",
    message=PASSED, seconds=0.2,
)  # fmt: skip
CONTROL = replace(GOOD, op=CONTROLS, ok=False, reached="linalg", message="error: ub overflow", negative_control=True)


def test_what_is_refused_fails_the_gate_and_is_named(monkeypatch, capfd):
    refused = replace(GOOD, ok=False, reached="linalg", message="error: ub overflow, requires much")
    for rows, status, words in (
        ([GOOD, CONTROL], 0, ["2 rows", "1 of them negative controls", "0 fail"]),
        ([GOOD, refused], 1, ["1 fail", "mlp_gelu: _forward (bf16) on Ascend910B3: error: ub overflow"]),
        ([GOOD, replace(CONTROL, ok=True)], 1, ["a negative control passed: the gate is blind"]),
    ):
        monkeypatch.setattr(ascend_gate, "gate", lambda *_, rows=rows: rows)
        got, out, err = call(capfd)
        assert got == status and all(each in out + err for each in words), out + err
    got, out, err = call(capfd, "--json")
    assert [row.keys() for row in json.loads(out)] == [FIELDS, FIELDS]


def test_options_of_the_other_target_are_refused(capfd):
    status, _, err = call(capfd, "--arch", "sm_90")
    assert status == 2 and "--arch is no option of --target ascend" in err
    assert bench.main(["compile", "--chip", "Ascend910B3"]) == 2
    assert "--chip is no option of --target gpu" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        call(capfd, "--chip", "Ascend310")
    assert "Ascend910_9382" in capfd.readouterr().err


SAID = """loc("k.mlir":1:1): [WARNING] Failed to detect hivmc version
[NOTE] Ub overflow detected; retrying
loc("k.mlir":191:14): error: Cannot find root memref.alloc for mC of this op.
[ERROR] Failed to run BiShengIR pipeline
"""


def test_the_first_line_that_says_why_is_the_message():
    assert meaningful(SAID) == "error: Cannot find root memref.alloc for mC of this op."
    overflow = SAID + "error: ub overflow, requires 6561792 bits while 1572864 bits available!"
    assert meaningful(overflow).startswith("error: ub overflow, requires 6561792 bits")
    assert meaningful("Segmentation fault\n") == "Segmentation fault"
    assert meaningful("") == "it said nothing"


MODULE = """
module attributes {target = #spec<"VECTOR_CORE_COUNT", 40 : i32, "CUBE_CORE_COUNT", 20 : i32>} {
    %c0_i64 = arith.constant 0 : i64
    %c512_i64 = arith.constant 512 : i64
    %c4096_i64 = arith.constant 4096 : i64
    %0 = hivm.hir.pointer_cast(%c0_i64) : memref<64xf32, #hivm.address_space<ub>>
    %1 = hivm.hir.pointer_cast(%c512_i64, %c4096_i64) : memref<2x3xbf16, strided<[3, 1]>, #hivm.address_space<ub>>
    %2 = hivm.hir.pointer_cast(%c4096_i64) : memref<99xi1, #hivm.address_space<ub>>
    %3 = hivm.hir.pointer_cast(%c4096_i64) : memref<9999xf32, #hivm.address_space<cbuf>>
"""


def test_the_recorded_module_tells_its_memory_and_its_chip():
    assert unified_buffer(MODULE) == 4096 + 13
    assert unified_buffer("") == 0
    assert "UB_SIZE None, not 1572864" in differences(MODULE, CHIPS["Ascend910B3"])
    said = differences(MODULE, CHIPS["Ascend910B1"])
    assert "VECTOR_CORE_COUNT 40, not 48" in said and "CUBE_CORE_COUNT 20, not 24" in said


LOOPS = """
  func.func @_forward{kind}(%arg0: i64) {{
    scf.for %arg1 = %c0 to %c9 step %c1 {{
      %0 = arith.addi %arg1, %c1 : i32
      scf.for %arg2 = %c0 to %c9 step %c128 {{
        hivm.hir.load
{inner}
      }}
    }}
    scf.for %arg1 = %c0 to %c9 step %c1 {{
    }}
  }}
  func.func private @vexp()
    scf.for
      scf.for
        scf.for
          scf.for
"""
INNER = """        scf.for %arg3 = %c0 to %c4 step %c1 {
        }"""


def test_a_loop_over_several_tiles_at_once_is_seen():
    linalg = LOOPS.format(kind="", inner="").partition("func.func private")[0]
    assert takes_turns(linalg, LOOPS.format(kind="_mix_aic", inner=""))
    assert not takes_turns(linalg, LOOPS.format(kind="_mix_aic", inner=INNER))
    assert not takes_turns(linalg, LOOPS.format(kind="", inner="")), "no cube core is in it"


def test_what_the_compiler_takes_is_refused_if_it_is_not_what_was_promised():
    row = {"ok": True, "message": PASSED, "stated_bytes": 4096, "unified_buffer_bytes": 4096, "scattered_accesses": 0}
    assert judged(row) == row
    assert judged(row | {"stated_bytes": 0, "unified_buffer_bytes": 9999})["ok"]
    more = judged(row | {"unified_buffer_bytes": 4097})
    assert not more["ok"] and "takes 4097 bytes of the unified buffer and states 4096" in more["message"]
    assert not judged(row | {"scattered_accesses": 1})["ok"]
    turns = judged(row | {"takes_turns": True})
    assert not turns["ok"] and "take turns, tile by tile" in turns["message"]
    assert not judged(row | {"one_vector_core": True})["ok"]
    failed = row | {"ok": False, "message": "error: ub overflow", "scattered_accesses": 1}
    assert judged(failed) == failed


# The environment.


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(ascend_environment, "refusal", lambda: None)
    return tmp_path


def test_the_environment_is_made_once(monkeypatch, cache):
    made, told = [], []
    monkeypatch.setattr(ascend_environment, "_make", lambda place: (place.mkdir(), made.append(place)))
    first = ascend_environment.python(told.append)
    assert first == ascend_environment.python(told.append)
    assert len(made) == len(told) == 1 and first.is_relative_to(cache / "contentv")
    assert "triton-ascend==3.2.0" in told[0]
    monkeypatch.setattr(ascend_environment, "ALONE", ("triton-ascend==9.9.9",))
    assert ascend_environment.python(told.append) != first, "other pins make another environment"


def test_one_that_was_not_finished_is_made_anew(monkeypatch, cache):
    def breaks(place):
        place.mkdir()
        (place / "half").touch()
        raise ValueError("pip broke down")

    monkeypatch.setattr(ascend_environment, "_make", breaks)
    with pytest.raises(ValueError, match="pip broke down"):
        ascend_environment.python(lambda _: None)
    monkeypatch.setattr(ascend_environment, "_make", lambda place: place.mkdir())
    place = ascend_environment.python(lambda _: None).parents[1]
    assert not (place / "half").exists()


WAITER = """
import sys, time
from pathlib import Path
from contentv.engine import ascend_environment
def make(place):
    place.mkdir()
    with open(sys.argv[1], "a") as log:
        log.write("made ")
    time.sleep(1)
ascend_environment._make = make
ascend_environment.refusal = lambda: None
ascend_environment.python(lambda _: None)
"""


def test_two_processes_make_one(cache):
    log = cache / "log"
    running = [subprocess.Popen([sys.executable, "-c", WAITER, str(log)]) for _ in range(2)]
    assert [process.wait(timeout=60) for process in running] == [0, 0]
    assert log.read_text() == "made "


def test_what_pip_cannot_reach_is_told(monkeypatch, cache):
    def unreachable(command, **_):
        pip = "pip" in command
        return subprocess.CompletedProcess(command, int(pip), "", "ERROR: No matching distribution found for torch")

    monkeypatch.setattr(ascend_environment.subprocess, "run", unreachable)
    with pytest.raises(ValueError, match="torch==2.13.0.*No matching distribution.*index-url"):
        ascend_environment.python(lambda _: None)


def test_another_python_or_machine_is_refused(monkeypatch, capfd):
    monkeypatch.setattr(ascend_environment, "PYTHON", (2, 7))
    status, _, err = call(capfd)
    assert status == 2 and "cannot be lowered for Ascend here" in err and "were tried with 3.11" in err
    monkeypatch.undo()
    monkeypatch.setattr(ascend_environment.platform, "machine", lambda: "aarch64")
    if sys.version_info[:2] == ascend_environment.PYTHON:
        assert "comes for Linux on x86_64" in ascend_environment.refusal()


def test_the_committed_result_is_of_todays_kernels():
    """docs/ascend.md's table is made of it."""
    path = Path(__file__).parents[1] / "benchmarks" / "results" / "ascend_lowering.json"
    rows = json.loads(path.read_text())["rows"]
    assert {row["op"] for row in rows if not row["negative_control"]} == {
        op for op in OPERATIONS if (op, "npu_triton") in TABLE
    }
    assert all(row["ok"] != row["negative_control"] for row in rows)
