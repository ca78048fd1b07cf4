"""Several ranks train as one: what only one of them meets, all act on, in the same step; validation in every layout."""

import pytest

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


def test_ranks_that_were_started_differently_are_refused_on_all(rank_server, shards, tmp_path):
    answers = rank_server.run(2, f"{PROGRAMS}:disagree", shards=str(shards), folder=str(tmp_path))
    told = {answer["told"] for answer in answers}
    assert len(told) == 1 and "ranks 1 have another configuration than rank 0" in told.pop()
    assert not (tmp_path / "metrics.jsonl").exists()


def test_all_ranks_run_what_rank_0_chose_or_none_starts(rank_server):
    assert rank_server.run(2, f"{PROGRAMS}:lacks_a_library", rank=0) == 2 * [{"chosen": "reference"}]
    answers = rank_server.run(2, f"{PROGRAMS}:lacks_a_library", rank=1)
    assert answers[0] == answers[1]
    assert answers[0]["told"].startswith("rank 1: mlp_gelu cannot use fast on cpu: its library is missing")


@pytest.fixture(scope="module")
def alone(rank_server, shards, tmp_path_factory):
    return validated(rank_server, 1, {}, shards, tmp_path_factory.mktemp("alone"))


def validated(rank_server, world, layout, shards, folder) -> list[dict]:
    first, *_ = rank_server.run(
        world, f"{PROGRAMS}:validated", shards=str(shards), folder=str(folder), layout=layout, timeout=240
    )
    return first


@pytest.mark.parametrize(
    "world, layout",
    [
        (2, {}),  # three held-out samples: one rank validates two, the other one
        (2, {"tensor": 2, "sequence": True}),
        (2, {"context": 2, "ulysses": 1}),
        (2, {"pipeline": 2, "virtual_pipeline": 2}),
    ],
    ids=["data", "tensor, sequence", "ring", "virtual pipeline"],
)
def test_training_and_validation_are_those_of_one_rank(rank_server, alone, shards, tmp_path, world, layout):
    lines = validated(rank_server, world, layout, shards, tmp_path)
    assert sum("validation_loss" in line for line in alone) == 3
    assert lines == [pytest.approx(line, rel=1e-5) for line in alone]


def test_a_checkpoint_that_one_rank_cannot_write_stops_both(rank_server, shards, tmp_path):
    one, other = rank_server.run(2, f"{PROGRAMS}:write_fails_on_one", shards=str(shards), folder=str(tmp_path))
    assert one == other and "rank 1: OSError: [Errno 28] No space left" in one["told"]
    # Not only when the next one is due.
    assert 2 < one["steps"] <= 4
    assert not CheckpointFolder(tmp_path).steps()
