"""Memory by the planner against the tensors of real steps: every storage counted while it lives, on every rank."""

import pytest

from contentv.engine.hardware import hardware_of
from contentv.engine.planner import Shape, predict
from contentv.engine.planner.memory import StepMemory
from tests.engine.planner.memory_cases import CASES, WIDER
from tests.engine.planner.small_runs import LATENTS, TEXT_TOKENS, small_run

LIVE = "contentv.tests.engine.planner.programs:live_bytes"
SHAPE = Shape(frames=LATENTS[0], rows=LATENTS[1], columns=LATENTS[2], text_tokens=TEXT_TOKENS)
CLOSE = 0.1
MOVING = 0.12
"""Of what a step allocates and frees: weights, which are known exactly, would hide a mistake in it."""


@pytest.mark.parametrize("case", [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in WIDER)], ids=str)
def test_memory_is_that_of_a_real_step(rank_server, case):
    world, run = case
    counted = rank_server.run(world, LIVE, run=run)
    planned = StepMemory(config=small_run(**run), world=world, hardware=hardware_of("cpu"), shape=SHAPE)
    stages = planned.layout.pipeline
    for rank in range(stages):
        # Ranks of a stage come one after the other, and hold the same or, the later ones, a little less.
        most = max(counted[rank * world // stages : (rank + 1) * world // stages])
        memory = planned.of_rank(rank)
        staying = memory.weights + memory.gradients + memory.optimizer + memory.ema
        assert memory.total == pytest.approx(most, rel=CLOSE), f"pipeline rank {rank}"
        assert memory.total - staying == pytest.approx(most - staying, rel=MOVING), f"pipeline rank {rank}"
    assert planned.worst.total == pytest.approx(max(counted), rel=CLOSE)


@pytest.mark.parametrize("world, run", CASES, ids=str)
def test_parts_are_the_total_exactly(world, run):
    prediction = predict(small_run(**run), world, hardware_of("cpu"), SHAPE)
    assert sum(vars(prediction.memory).values()) == prediction.memory.total
    assert sum(prediction.memory_gib.values()) == pytest.approx(prediction.total_gib, rel=1e-12)
    assert sum(prediction.time_seconds.values()) == prediction.step_seconds
    assert all(part >= 0 for part in vars(prediction.memory).values())
    assert all(part >= 0 for part in prediction.time_seconds.values())


def test_attention_has_a_workspace_on_an_accelerator_alone():
    run = small_run(trainer={"precision": "bf16", "recompute": "selective"}, layout={"tensor": 2, "sequence": True})
    shape = Shape(frames=8, rows=64, columns=64, text_tokens=13)

    def workspaces(hardware: str) -> set[int]:
        memory = StepMemory(config=run, world=2, hardware=hardware_of(hardware), shape=shape)
        return {moment.attention_workspace for moment in memory.block.moments(0, "selective")}

    assert workspaces("cpu") == {0}
    joint = shape.video_tokens + shape.text_tokens
    # Queries' gradients in fp32, and two more values a row, of three heads of two samples.
    assert max(workspaces("h100-80g")) == joint * 3 * 2 * 4 * (16 + 2)
