"""Which nodes are bad: by their own error, against each other, and against those of earlier checks."""

import json

import pytest

from contentv.engine import json_lines
from contentv.engine.hardware import hardware_of
from contentv.engine.node_floor import Floor, peaks
from contentv.engine.node_verdict import Unended, judge, mark
from contentv.engine.run_files import NODES_FILE


def measured(folder, rank, node, matmul=100.0, error=None, device="cuda", **more):
    record = {"node": node, "rank": rank, "device": device, "error": error}
    record |= {} if error else {"matmul_tflops": matmul, "copy_gb_per_s": 10.0, "all_reduce_gb_per_s": 5.0} | more
    folder.mkdir(exist_ok=True)
    (folder / f"node_check-figures-{rank}.json").write_text(json.dumps(record))


def test_a_slow_node_is_named_with_its_figure(tmp_path):
    for rank, matmul in enumerate((101.0, 99.0, 48.0, 100.0)):
        measured(tmp_path / "1", rank, f"n{rank // 2 + 1}", matmul)
    verdict = judge(tmp_path, tmp_path / "1", attempt=1, job="7")
    assert verdict.bad == ("n2",) and "n2 is bad: rank 2: matmul_tflops is 48 TFLOP/s, 48% of" in verdict.lines[0]
    # Later attempts of the job leave it out too; another job begins anew.
    measured(tmp_path / "2", 0, "n3", error="no device")
    assert judge(tmp_path, tmp_path / "2", attempt=2, job="7").bad == ("n2", "n3")
    assert judge(tmp_path, tmp_path / "2", attempt=1, job="8").bad == ("n3",)


def test_nodes_that_are_all_slow_are_known_by_those_before(tmp_path):
    measured(tmp_path / "1", 0, "n1")
    measured(tmp_path / "2", 0, "n2", 40.0)
    assert judge(tmp_path, tmp_path / "1", attempt=1, job="7").bad == ()
    assert judge(tmp_path, tmp_path / "2", attempt=2, job="7").bad == ("n2",)


def test_what_neighbours_take_of_a_cpu_is_no_fault(tmp_path):
    for rank, matmul in enumerate((100.0, 100.0, 100.0, 30.0)):
        measured(tmp_path / "1", rank, f"n{rank}", matmul, device="cpu")
    assert judge(tmp_path, tmp_path / "1", attempt=1, job="7").bad == ()


def began(folder, ranks):
    for rank in range(ranks):
        mark(folder, node=f"node-{rank // 2 + 1}", rank=rank)


def test_a_device_that_hangs_leaves_a_mark_alone_and_is_named(tmp_path):
    began(tmp_path / "1", 4)
    for rank in (0, 1, 3):
        measured(tmp_path / "1", rank, f"node-{rank // 2 + 1}")
    assert judge(tmp_path, tmp_path / "1", attempt=1, job="7", asked=True).bad == ()
    verdict = judge(tmp_path, tmp_path / "1", attempt=1, job="7")
    assert verdict.bad == ("node-2",) and "rank 2: its device did not answer" in verdict.lines[0]


def test_whom_srun_ended_for_the_sake_of_another_is_not_blamed(tmp_path):
    began(tmp_path / "1", 6)
    measured(tmp_path / "1", 0, "node-1")
    assert judge(tmp_path, tmp_path / "1", attempt=1, job="7").bad == ()  # one was killed, one had time
    for rank in (1, 2):
        measured(tmp_path / "1", rank, f"node-{rank // 2 + 1}")
    measured(tmp_path / "1", 3, "node-2", error="no device")
    assert judge(tmp_path, tmp_path / "1", attempt=2, job="7").bad == ("node-2",)


def test_half_a_line_of_an_earlier_check_does_not_disable_this_one(tmp_path):
    (tmp_path / NODES_FILE).write_text('{"attempt": 1, "job": "7"}\n{"attempt": 1, "job": "7", "no')
    for attempt in (1, 2):
        measured(tmp_path / "1", 0, "n1", error="no device")
        assert judge(tmp_path, tmp_path / "1", attempt=attempt, job="7").bad == ("n1",)
    assert len(json_lines.read(tmp_path / NODES_FILE)) == 3


def test_a_rank_that_measured_nothing_says_nothing(tmp_path):
    (tmp_path / "1").mkdir()
    assert judge(tmp_path, tmp_path / "1", attempt=1, job="7").bad == ()


LATE = Unended(minutes=10, nodes=("node-1", "node-2"), ranks_per_node=2)


def test_a_check_that_reached_its_limit_says_how_far_each_node_came(tmp_path):
    began(tmp_path / "1", 3)
    verdict = judge(tmp_path, tmp_path / "1", attempt=1, job="7", unended=LATE)
    assert verdict.bad == () and verdict.unended == (
        "the node check did not end within 10 min: on node-1 the device of rank 0, 1 did not answer; on node-2 the "
        "device of rank 2 did not answer; on node-2 1 of 2 ranks did not come as far as their device"
    )
    # Asked to stop meanwhile, it is no failure.
    assert judge(tmp_path, tmp_path / "1", attempt=1, job="7", asked=True, unended=LATE).unended == ""
    began(tmp_path / "1", 4)
    for rank in range(4):
        measured(tmp_path / "1", rank, f"node-{rank // 2 + 1}")
    assert (
        "every rank has measured by itself, but the sum"
        in judge(tmp_path, tmp_path / "1", attempt=2, job="7", unended=LATE).unended
    )


def test_at_its_limit_too_a_check_blames_one_of_many(tmp_path):
    began(tmp_path / "1", 4)
    for rank in (0, 1, 3):
        measured(tmp_path / "1", rank, f"node-{rank // 2 + 1}")
    verdict = judge(tmp_path, tmp_path / "1", attempt=1, job="7", unended=LATE)
    assert (verdict.bad, verdict.unended) == (("node-2",), "")


def test_where_most_ranks_hang_no_node_is_blamed_and_nothing_trains(tmp_path):
    began(tmp_path / "1", 4)
    measured(tmp_path / "1", 0, "node-1")
    assert judge(tmp_path, tmp_path / "1", attempt=1, job="7", asked=True).unended == ""
    verdict = judge(tmp_path, tmp_path / "1", attempt=1, job="7")
    assert verdict.bad == ()
    assert verdict.unended.startswith("of 4 ranks in the node check 3 began and measured nothing")


def test_hundreds_of_silent_nodes_are_counted(tmp_path):
    (tmp_path / "1").mkdir()
    late = Unended(minutes=10, nodes=tuple(f"n{node}" for node in range(256)), ranks_per_node=8)
    said = judge(tmp_path, tmp_path / "1", attempt=1, job="7", unended=late).unended
    assert said.endswith("on n7 8 of 8 ranks did not come as far as their device; and 248 more") and len(said) < 700


GOOD = {"matmul_tflops": 790.0, "copy_gb_per_s": 3000.0, "all_reduce_gb_per_s": 200.0}
"""Of an H100: its product and its copy as measured, a sum as NVLink is said to make it."""


@pytest.mark.parametrize(
    ("name", "figures", "words"),
    [
        ("NVIDIA H100 80GB HBM3", GOOD, None),
        ("NVIDIA H100 80GB HBM3", GOOD | {"matmul_tflops": 300.0},
         "matmul_tflops is below the floor on 2 of 2 ranks; the slowest, rank 0 on n0, does 300 TFLOP/s, 30% of the "
         "989.4 published of its kind, H100 SXM; at least 50% is asked"),
        ("NVIDIA H100 80GB HBM3", GOOD | {"copy_gb_per_s": 1500.0}, "1500 GB/s, 45% of the 3350"),
        ("NVIDIA H100 80GB HBM3", GOOD | {"all_reduce_gb_per_s": 40.0}, "all_reduce_gb_per_s is below"),
        ("NVIDIA H200", GOOD, None),
        ("NVIDIA H200", GOOD | {"copy_gb_per_s": 2300.0}, "48% of the 4800"),
        ("NVIDIA A100-SXM4-80GB", GOOD | {"matmul_tflops": 140.0}, "45% of the 312"),
        ("Ascend910B3", GOOD | {"matmul_tflops": 150.0}, "40% of the 376"),
        ("NVIDIA B200", GOOD | {"matmul_tflops": 1.0}, None),  # not in the table
        ("cpu", GOOD | {"matmul_tflops": 0.1}, None),
    ],
)  # fmt: skip
def test_devices_that_are_all_slow_alike_are_known_by_their_kind(tmp_path, name, figures, words):
    for rank in (0, 1):
        measured(tmp_path / "1", rank, f"n{rank}", name=name, ranks_here=8, **figures)
    verdict = judge(tmp_path, tmp_path / "1", attempt=1, job="7")
    warnings = [line for line in verdict.lines if line.startswith("warning: node check: ")]
    assert verdict.bad == () and len(warnings) == (words is not None) and (words or "") in "".join(warnings)
    excluded = judge(tmp_path, tmp_path / "1", attempt=2, job="8", floor=Floor(excludes=True))
    assert excluded.bad == (("n0", "n1") if words else ())
    assert judge(tmp_path, tmp_path / "1", attempt=3, job="9", floor=Floor(share=0.0, excludes=True)).bad == ()


def test_a_sum_is_held_against_the_links_that_it_can_use():
    assert peaks(hardware_of("h100-80g"), 8)["all_reduce_gb_per_s"] == pytest.approx(450 * 8 / 14)
    assert peaks(hardware_of("h100-80g"), 2)["all_reduce_gb_per_s"] == pytest.approx(450)
    # A mesh gives two NPUs one of their seven links.
    assert peaks(hardware_of("ascend-910b-64g"), 2)["all_reduce_gb_per_s"] == pytest.approx(196 / 7)
    assert "all_reduce_gb_per_s" not in peaks(hardware_of("h100-80g"), 1) and peaks(hardware_of("cpu"), 4) == {}
