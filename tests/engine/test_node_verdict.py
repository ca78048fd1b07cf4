"""Which nodes are bad: by their own error, against each other, and against those of earlier checks."""

import json

from contentv.engine import json_lines
from contentv.engine.node_verdict import judge, mark
from contentv.engine.run_files import NODES_FILE


def measured(folder, rank, node, matmul=100.0, error=None, device="cuda"):
    record = {"node": node, "rank": rank, "device": device, "error": error}
    record |= {} if error else {"matmul_tflops": matmul, "copy_gb_per_s": 10.0, "all_reduce_gb_per_s": 5.0}
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
