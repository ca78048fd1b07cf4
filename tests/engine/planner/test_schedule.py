"""The order of passes against megatron's real schedule, rank by rank; and the time such an order takes."""

import pytest

from contentv.engine.planner.schedule import FORWARD, in_flight, makespan, order

ORDER = "contentv.tests.engine.planner.programs:order_of_passes"
MODEL = {"layers": 8, "heads": 2}
SMALL = {"latents": [1, 2, 4], "text_tokens": 3}


@pytest.mark.parametrize(
    "pipeline, virtual, microbatches",
    [
        (2, 1, 1),
        (2, 1, 5),
        (2, 2, 2),
        (2, 4, 4),
        (4, 1, 2),
        (4, 1, 7),
        (4, 2, 4),
        (4, 2, 8),
    ],
)
def test_passes_come_in_the_order_of_the_real_schedule(rank_server, pipeline, virtual, microbatches):
    layout = {"pipeline": pipeline, "virtual_pipeline": virtual}
    run = {"layout": layout, "model": MODEL, "trainer": {"global_batch": microbatches, "micro_batch": 1}}
    seen = rank_server.run(pipeline, ORDER, run=run, **SMALL)
    for rank, passes in enumerate(seen):
        planned = order(pipeline, virtual, microbatches, rank)
        assert [[each.direction, each.chunk, each.microbatch] for each in planned] == passes, f"rank {rank}"


def test_equal_stages_idle_as_the_formula_says():
    # (p - 1) / (m v) of the working time (Narayanan et al., arXiv 2104.04473, section 2.2).
    for pipeline, virtual, microbatches in ((2, 1, 4), (4, 1, 8), (4, 2, 8), (8, 4, 16)):
        runs = pipeline * virtual
        seconds = makespan(pipeline, virtual, microbatches, (1.0 / virtual,) * runs, (2.0 / virtual,) * runs, 0.0)
        working = 3.0 * microbatches
        assert seconds / working - 1 == pytest.approx((pipeline - 1) / (microbatches * virtual))


def test_one_rank_never_waits():
    assert makespan(1, 1, 5, (1.0,), (2.0,), 100.0) == 15.0


def test_messages_and_uneven_stages_delay():
    even = makespan(2, 1, 4, (1.0, 1.0), (2.0, 2.0), 0.0)
    assert makespan(2, 1, 4, (1.0, 1.0), (2.0, 2.0), 0.25) > even
    assert makespan(2, 1, 4, (0.5, 1.5), (1.0, 3.0), 0.0) > even


def test_as_many_microbatches_are_under_way_as_the_order_says():
    assert in_flight(4, 1, 8, 0) == ((0, (4,)),)
    assert in_flight(4, 1, 8, 3) == ((0, (1,)),)
    assert in_flight(4, 1, 2, 0) == ((0, (2,)),)
    fullest = max(sum(counts) for _, counts in in_flight(4, 2, 8, 0))
    passes, alive, most = order(4, 2, 8, 0), 0, 0
    for each in passes:
        alive += 1 if each.direction == FORWARD else -1
        most = max(most, alive)
    assert fullest == most == 11
