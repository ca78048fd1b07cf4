"""The order in which a pipeline's ranks run forward and backward passes, and how long that takes.

It is megatron-core's: one forward one backward (Narayanan et al., arXiv 2104.04473, figure 4), interleaved where a rank
holds several runs of blocks. tests/engine/planner/test_schedule.py compares every rank's order with the real one.
"""

from dataclasses import dataclass
from functools import cache

FORWARD, BACKWARD = "forward", "backward"


@dataclass(frozen=True)
class Pass:
    """One microbatch through one run of blocks."""

    direction: str
    chunk: int
    """Of the runs that the rank holds."""
    microbatch: int


@cache
def order(pipeline: int, virtual: int, microbatches: int, rank: int) -> tuple[Pass, ...]:
    """Of all passes of a step on one pipeline rank."""
    table = _table(pipeline, virtual, microbatches)
    forwards = [Pass(FORWARD, chunk, number) for chunk, number in table]
    backwards = [Pass(BACKWARD, virtual - 1 - chunk, number) for chunk, number in table]
    ahead = min(warm_up(pipeline, virtual, rank), len(table))
    steady = [each for pair in zip(forwards[ahead:], backwards, strict=False) for each in pair]
    return (*forwards[:ahead], *steady, *backwards[len(table) - ahead :])


def warm_up(pipeline: int, virtual: int, rank: int) -> int:
    """Forward passes before the first backward."""
    if pipeline == 1:
        return 0
    behind = pipeline - rank - 1
    return behind if virtual == 1 else 2 * behind + (virtual - 1) * pipeline


def _table(pipeline: int, virtual: int, microbatches: int) -> list[tuple[int, int]]:
    """(chunk, microbatch) in the order of forward passes: `pipeline` microbatches through each run in turn."""
    if virtual == 1:
        return [(0, number) for number in range(microbatches)]
    return [
        (chunk, number)
        for first in range(0, microbatches, pipeline)
        for chunk in range(virtual)
        for number in range(first, min(first + pipeline, microbatches))
    ]


@cache
def in_flight(pipeline: int, virtual: int, microbatches: int, rank: int) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """For each kind of backward pass the fullest moments: (its chunk, how many microbatches each chunk keeps then)."""
    alive = [0] * virtual
    seen = set()
    for each in order(pipeline, virtual, microbatches, rank):
        if each.direction == FORWARD:
            alive[each.chunk] += 1
        else:
            seen.add((each.chunk, tuple(alive)))
            alive[each.chunk] -= 1
    return tuple(
        (chunk, counts)
        for chunk, counts in sorted(seen)
        if not any(
            other == chunk and more != counts and all(a >= b for a, b in zip(more, counts, strict=True))
            for other, more in seen
        )
    )


def makespan(pipeline: int, virtual: int, microbatches: int, forward: tuple[float, ...], backward: tuple[float, ...],
             message: float) -> float:  # fmt: skip
    """Seconds from the first forward to the last backward.

    `forward`, `backward`: seconds of a microbatch through each run of blocks, in the order of the model; `message`: of
    handing one on to the next run, on another rank.
    """
    last = pipeline * virtual - 1
    done: dict[tuple[str, int, int], float] = {}
    clocks, queues = [0.0] * pipeline, [list(order(pipeline, virtual, microbatches, rank)) for rank in range(pipeline)]
    places = [0] * pipeline
    waiting = set(range(pipeline))
    while waiting:
        moved = False
        for rank in sorted(waiting):
            queue = queues[rank]
            while places[rank] < len(queue):
                each = queue[places[rank]]
                run = each.chunk * pipeline + rank
                if each.direction == FORWARD:
                    needs = (FORWARD, run - 1, each.microbatch) if run > 0 else None
                else:
                    needs = (BACKWARD, run + 1, each.microbatch) if run < last else None
                if needs is not None and needs not in done:
                    break
                ready = 0.0 if needs is None else done[needs] + message
                seconds = (forward if each.direction == FORWARD else backward)[run]
                clocks[rank] = max(clocks[rank], ready) + seconds
                done[each.direction, run, each.microbatch] = clocks[rank]
                places[rank] += 1
                moved = True
            if places[rank] == len(queue):
                waiting.discard(rank)
        assert moved, "the ranks wait for each other"
    return max(clocks)
