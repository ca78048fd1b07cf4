"""What the planner says a rank computes and sends against the exact counts of the whole step."""

import pytest

from contentv.engine.hardware import hardware_of
from contentv.engine.planner.prediction import block_times
from contentv.engine.planner.rates import rates_of
from contentv.engine.planner.shape import Shape
from contentv.engine.planner.work import BlockWork, Work
from contentv.model.config import contentv_8b
from contentv.model.cost import count_operations
from contentv.model.stages import Stage
from contentv.model.volume import Place, StepShape, count_held, count_volume
from contentv.parallel.config import ParallelConfig
from tests.engine.planner.small_runs import small_run

SHAPE = Shape(frames=3, rows=6, columns=10, text_tokens=7)
CLIP = Shape.of_clip(125, 432, 768, text_tokens=333)


def work_of(config, shape: Shape, samples: int = 2, **layout) -> BlockWork:
    return BlockWork(
        config=config, layout=ParallelConfig(**layout), shape=shape, samples=samples, value_bytes=2
    )  # fmt: skip


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("config, shape", [(small_run().model, SHAPE), (contentv_8b(), CLIP)], ids=["small", "8b"])
def test_a_world_of_one_computes_what_the_cost_model_counts(config, shape, recompute):
    """model/cost.py equals torch's FlopCounterMode to the last operation (tests/model/test_cost.py)."""
    work = work_of(config, shape)
    counted = count_operations(
        config, video_tokens=shape.video_tokens, text_tokens=shape.text_tokens, batch=2, recompute=recompute
    )
    forward = sum((work.forward(layer) for layer in range(config.layers)), sum(work.ends(), Work()))
    none = sum((work.backward(layer, "none") for layer in range(config.layers)), sum(work.ends_backward(), Work()))
    backward = sum(
        (work.backward(layer, recompute) for layer in range(config.layers)), sum(work.ends_backward(), Work())
    )
    assert forward.operations == counted.forward
    assert none.operations == counted.backward
    # Scores, which backward computes once more whatever is recomputed, are in the rate of attention's backward.
    scores = sum(each.work for each in forward.attention) // 2
    again = backward.operations - none.operations
    assert again == counted.recomputed - scores


LAYOUTS = (
    {"tensor": 2},
    {"tensor": 2, "sequence": True},
    {"context": 4},
    {"context": 4, "ulysses": 2},
    {"context": 2, "ulysses": 1},
)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_a_block_sends_what_one_more_block_adds_to_the_volume(layout, recompute):
    def volume(layers: int, microbatches: int):
        step = StepShape(
            video_tokens=SHAPE.video_tokens, text_tokens=SHAPE.text_tokens, samples=2, microbatches=microbatches,
            data=1, recompute=recompute,
        )  # fmt: skip
        config = small_run(model={"layers": layers}).model
        return vars(count_volume(config, ParallelConfig(**layout), Place(), step))

    def of_a_microbatch(layers: int) -> dict[str, int]:
        once, twice = volume(layers, 1), volume(layers, 2)
        return {axis: twice[axis] - once[axis] for axis in once}

    more, fewer = of_a_microbatch(5), of_a_microbatch(4)
    sent = work_of(small_run().model, SHAPE, **layout).sent(0, recompute)
    assert sent.tensor == more["tensor"] + more["sequence"] - fewer["tensor"] - fewer["sequence"]
    assert sent.ulysses == more["ulysses"] - fewer["ulysses"]
    assert sent.ring == more["ring"] - fewer["ring"]


def test_ranks_hold_the_parameters_that_the_volume_is_made_of():
    config, layout = contentv_8b(), ParallelConfig(tensor=4)
    held = count_held(config, layout)
    step = StepShape(video_tokens=1, text_tokens=1, samples=1, microbatches=1, data=1024)
    moved = count_volume(config, layout, Place(), step).data
    assert moved == held.by(Stage(0, 38, 38)) * 6 * 1023 // 1024


def test_a_block_of_the_8b_model_takes_what_it_took_on_an_h100():
    """tests/benchmarks/results/block_h100.json: rates are single kernels', whose sum must be the block measured."""
    config = small_run(
        model={"layers": 38, "heads": 38, "head_width": 64}, trainer={"micro_batch": 1, "precision": "bf16"}
    )
    hardware = hardware_of("h100-80g")
    rates = rates_of(hardware, "bf16", repeatable=False)
    forward, backward = block_times(config, 1, hardware, CLIP, rates).block(0, "none")
    assert forward.total == pytest.approx(0.0442, rel=0.05)
    assert forward.total + backward.total == pytest.approx(0.1489, rel=0.05)
