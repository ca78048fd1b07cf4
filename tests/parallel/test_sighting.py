"""Slow ranks, what is said of a stuck one, and what watching costs."""

import json
import time
from dataclasses import asdict
from functools import partial

from torch import distributed

from contentv.engine import heartbeats
from contentv.parallel.sighting import PERIOD, Sighting, slow_ranks
from contentv.parallel.watch import SAMPLE, TOLD_EVERY, Watch


def seen(rank, computing, **values):
    base = {"step": 7, "phase": "update", "place": "x.py:f", "waits": False, "published": 100.0, "host": "n1"}
    return Sighting(rank=rank, computing=computing, **base | values)


def test_a_slow_rank_is_the_one_that_waits_least():
    # Three wait most of the time for the fourth.
    assert slow_ranks([seen(0, 0.5), seen(1, 0.52), seen(2, 0.48), seen(3, 0.95)]) == [
        "rank 3 computes 1.9 x as long as the median of 4 ranks (n1)"
    ]


def test_small_differences_and_unknown_shares_name_nobody():
    assert slow_ranks([seen(0, 0.5), seen(1, 0.55), seen(2, 0.6)]) == []
    assert slow_ranks([seen(0, 0.02), seen(1, 0.04)]) == []  # twice as long, of next to nothing
    assert slow_ranks([seen(0, None), seen(1, 0.9)]) == []


def test_a_stuck_rank_is_told_with_its_last_collective_and_its_stack():
    told = seen(3, None, collective="all_reduce", stack="a.py:f:1 < b.py:g:2").describe(101.0)
    assert (
        told
        == "rank 3 is at step 7, update, computing in x.py:f, last collective all_reduce, stack: a.py:f:1 < b.py:g:2"
    )
    assert "silent for 50 s, last seen at step 7" in seen(3, None).describe(150.0)


def test_watching_256_ranks_takes_less_than_a_hundredth_of_rank_0(tmp_path):
    """Processor time of the thread, not of the clock: what else the machine does is no cost of the watch's."""
    world = 256
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    watch = Watch(limit=1000.0, rank=0, world=world)
    watch._store, watch._listener = store, partial(heartbeats.write, tmp_path)
    for rank in range(1, world):
        store.set(f"contentv/watch/{rank}", json.dumps(asdict(seen(rank, 0.5, stack="x.py:f:1 < " * 12))))
    looks, publications = round(PERIOD / SAMPLE), 20
    started = time.thread_time()
    for number in range(publications):
        for _ in range(looks):
            watch._look()
        watch._publish()
        if number % TOLD_EVERY == 0:
            watch._tell_listener()
    share = (time.thread_time() - started) / (publications * PERIOD)
    assert len(heartbeats.read(tmp_path).ranks) == world
    assert share < 0.01, f"{share:.2%} of a processor"
