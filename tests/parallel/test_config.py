"""Layouts: how a world is divided, and every one that a model or a world cannot have, refused by name."""

import pytest

from contentv.parallel.config import ParallelConfig, divide

MODEL = {"layers": 4, "heads": 6, "width": 96, "mlp_width": 384}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"tensor": 0}, "parallel.tensor is 0; it must be from 1 to 65536"),
        ({"pipeline": -1}, "parallel.pipeline is -1"),
        ({"context": 0}, "parallel.context is 0"),
        ({"virtual_pipeline": 0}, "parallel.virtual_pipeline is 0"),
        ({"context": 4, "ulysses": 3}, "parallel.ulysses is 3; it must divide parallel.context, 4"),
        ({"ulysses": -1}, "parallel.ulysses is -1"),
        ({"ulysses": 2}, "parallel.ulysses is 2; it must divide parallel.context, 1"),
        ({"sequence": True}, "parallel.sequence is True, but parallel.tensor is 1"),
        ({"virtual_pipeline": 2}, "parallel.virtual_pipeline is 2, but parallel.pipeline is 1"),
    ],
)
def test_degrees_that_contradict_each_other(values, words):
    with pytest.raises(ValueError, match=words):
        ParallelConfig(**values)


@pytest.mark.parametrize(
    ("values", "model", "words"),
    [
        ({"pipeline": 5}, {}, "5 x 1 are 5 runs of blocks, but the model has 4 blocks"),
        ({"pipeline": 2, "virtual_pipeline": 3}, {}, "2 x 3 are 6 runs"),
        ({"tensor": 8}, {}, "parallel.tensor is 8, but the model has 6 heads"),
        ({"tensor": 5}, {}, "does not divide the model's width .*, 192"),
        ({"tensor": 4}, {"mlp_width": 386}, "does not divide the model's MLP width, 386"),
        ({"context": 8}, {}, "parallel.ulysses is 8, but a tensor rank has 6 of the 6 heads"),
        ({"tensor": 4, "context": 3}, {}, "parallel.ulysses is 3, but a tensor rank has 2 of the 6 heads"),
    ],
)
def test_layouts_a_model_cannot_have(values, model, words):
    with pytest.raises(ValueError, match=words):
        ParallelConfig(**values).check_model(**MODEL | model)


@pytest.mark.parametrize(
    "values",
    [{"tensor": 4}, {"context": 6}, {"context": 8, "ulysses": 2}, {"pipeline": 2, "virtual_pipeline": 2},
     {"tensor": 4, "context": 4, "ulysses": 2}],
)  # fmt: skip
def test_layouts_a_model_can_have(values):
    ParallelConfig(**values).check_model(**MODEL)


def test_what_the_world_has_beyond_a_copy_is_data_parallel():
    assert [ParallelConfig().data_size(world) for world in (1, 2, 7)] == [1, 2, 7]
    assert ParallelConfig(tensor=2, pipeline=3, context=2).data_size(24) == 2
    assert ParallelConfig(context=8, ulysses=2).ring_size == 4 and ParallelConfig(context=8).ring_size == 1
    for world in (0, 6):
        with pytest.raises(ValueError, match=f"the world has {world} processes; .* needs a multiple of 4"):
            ParallelConfig(tensor=4).data_size(world)


def test_division_is_as_equal_as_can_be_and_larger_first():
    assert divide(38, 4) == [10, 10, 9, 9] and divide(333, 2) == [167, 166] and divide(2, 3) == [1, 1, 0]
