"""Two ranks train as one: what only one of them meets, both act on, in the same step."""

from contentv.engine.checkpoints import CheckpointFolder
from contentv.engine.metrics import read_metrics

PROGRAMS = "contentv.tests.engine.rank_programs"


def test_a_stop_asked_of_one_rank_stops_both(rank_server, shards, tmp_path):
    answers = rank_server.run(2, f"{PROGRAMS}:stop_on_one", shards=str(shards), folder=str(tmp_path))
    assert answers == [{"rank": rank, "step": 2, "complete": False} for rank in (0, 1)]
    assert CheckpointFolder(tmp_path).steps() == [2]
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_nan_that_one_rank_reads_stops_both_before_the_update(rank_server, shards, tmp_path):
    answers = rank_server.run(2, f"{PROGRAMS}:poison_on_one", shards=str(shards), folder=str(tmp_path))
    told = {answer["told"] for answer in answers}
    assert len(told) == 1 and "sample ids [3]" in told.pop()
    assert not CheckpointFolder(tmp_path).steps()


def test_a_checkpoint_that_one_rank_cannot_write_stops_both(rank_server, shards, tmp_path):
    one, other = rank_server.run(2, f"{PROGRAMS}:write_fails_on_one", shards=str(shards), folder=str(tmp_path))
    assert one == other and "rank 1: OSError: [Errno 28] No space left" in one["told"]
    # Not only when the next one is due.
    assert 2 < one["steps"] <= 4
    assert not CheckpointFolder(tmp_path).steps()
