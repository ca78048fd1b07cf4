"""The harness itself: results by rank, a failing rank's traceback, no process left after a timeout."""

import time

import psutil
import pytest

from contentv.tests.ranks import RankFailure

PROGRAMS = "contentv.tests.parallel.programs"


def test_every_rank_answers_in_its_place(rank_server):
    answers = rank_server.run(3, f"{PROGRAMS}:greet", word="hello")
    assert [answer["rank"] for answer in answers] == [0, 1, 2]
    for answer in answers:
        assert (answer["total"], answer["highest"]) == (6.0, [2, 0])
        assert answer["sizes"] == [1, 1, 1, 3, 3] and answer["threads"] == 1
    assert len({answer["pid"] for answer in answers}) == 3


def test_a_failing_rank_is_shown_and_the_server_goes_on(rank_server):
    with pytest.raises(RankFailure, match=r"(?s)rank 1 of 2 ended with status 1.*ArithmeticError: rank 1 had enough"):
        rank_server.run(2, f"{PROGRAMS}:fail", rank=1)
    with pytest.raises(RankFailure, match="ModuleNotFoundError: No module named 'nowhere'"):
        rank_server.run(1, "nowhere:function")
    assert rank_server.run(1, f"{PROGRAMS}:greet", word="still here")[0]["sizes"] == [1, 1, 1, 1, 1]


def test_a_rank_that_hangs_is_killed(rank_server):
    started = time.monotonic()
    with pytest.raises(RankFailure, match=r"(?s)rank 0 of 2 did not end within 5.0 seconds.*asleep"):
        rank_server.run(2, f"{PROGRAMS}:sleep", timeout=5.0, seconds=60)
    assert time.monotonic() - started < 30
    assert psutil.Process(rank_server.process.pid).children(recursive=True) == []
