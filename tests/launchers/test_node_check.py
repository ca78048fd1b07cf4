"""The node check's process of one rank, as far as launchers/slurm_job.py relies on what it leaves."""

from contentv.engine import node_speed
from contentv.launchers import node_check


def test_the_mark_of_a_rank_is_there_before_its_device_is_asked(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(node_speed, "measure", lambda folder, **_: seen.extend(path.name for path in folder.iterdir()))
    monkeypatch.setenv("SLURMD_NODENAME", "node-1")
    assert node_check.main([str(tmp_path)]) == 0
    assert seen == ["node_check-began-0-node-1"]
