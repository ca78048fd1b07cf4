"""Which nodes are bad: by their own error, against each other, and against those of earlier checks."""

import json

from contentv.engine.node_verdict import judge


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


def test_a_rank_that_measured_nothing_says_nothing(tmp_path):
    (tmp_path / "1").mkdir()
    assert judge(tmp_path, tmp_path / "1", attempt=1, job="7").bad == ()
