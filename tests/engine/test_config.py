"""Every impossible value is refused where it is made, naming its key; batches are split exactly over the world."""

from dataclasses import fields, is_dataclass, replace
from math import inf, nan

import pytest

from contentv.launchers.recipes import quickstart


@pytest.mark.parametrize(
    "section, name, value",
    [
        ("run", "folder", ""),
        ("data", "folder", ""),
        ("data", "held_out_samples", -1),
        ("optimizer", "learning_rate", nan),
        ("optimizer", "learning_rate", inf),
        ("optimizer", "warmup_steps", -1),
        ("optimizer", "schedule", "linear"),
        ("optimizer", "beta1", 1.0),
        ("optimizer", "beta2", nan),
        ("optimizer", "epsilon", 0.0),
        ("optimizer", "clip", -0.5),
        ("optimizer", "weight_decay", -1.0),
        ("optimizer", "ema_decay", 1.0),
        ("trainer", "max_steps", 0),
        ("trainer", "global_batch", 0),
        ("trainer", "micro_batch", 0),
        ("trainer", "checkpoint_every", 0),
        ("trainer", "keep_checkpoints", -1),
        ("trainer", "log_every", 0),
        ("trainer", "validate_every", -1),
        ("trainer", "seed", -1),
        ("trainer", "seed", 2**63),
        ("trainer", "precision", "fp16"),
        ("trainer", "recompute", "some"),
        ("trainer", "threads", -1),
        ("trainer", "peak_tflops", -1.0),
        ("trainer", "peak_tflops", inf),
        ("sample", "steps", 0),
        ("sample", "guidance", -1.0),
        ("sample", "fps", 0.0),
    ],
)
def test_an_impossible_value_is_refused_by_its_key(section, name, value):
    with pytest.raises(ValueError, match=rf"^{section}\.{name} is "):
        replace(getattr(quickstart(), section), **{name: value})


@pytest.mark.parametrize("world, micro_batch, expected", [(1, 8, 1), (1, 2, 4), (2, 4, 1), (4, 1, 2), (8, 1, 1)])
def test_a_step_accumulates_what_the_ranks_do_not_take_at_once(world, micro_batch, expected):
    config = quickstart()
    config = replace(config, trainer=replace(config.trainer, global_batch=8, micro_batch=micro_batch))
    assert config.micro_batches(world) == expected
    assert expected * micro_batch * world == 8


@pytest.mark.parametrize("world, micro_batch", [(1, 3), (3, 1), (2, 8), (16, 1)])
def test_a_batch_that_does_not_split_is_refused(world, micro_batch):
    config = quickstart()
    config = replace(config, trainer=replace(config.trainer, global_batch=8, micro_batch=micro_batch))
    with pytest.raises(ValueError, match=r"trainer\.global_batch is 8;.*lower micro_batch"):
        config.micro_batches(world)


def test_every_class_stays_small_and_frozen():
    classes = [type(value) for value in vars(quickstart()).values() if is_dataclass(value)]
    assert len(classes) == 10
    for kind in classes:
        assert len(fields(kind)) <= 15, kind
        assert kind.__dataclass_params__.frozen and all(field.kw_only for field in fields(kind)), kind
