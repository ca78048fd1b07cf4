"""Layouts that are not built yet are refused by name; a world is split exactly."""

import pytest

from contentv.parallel.config import ParallelConfig


@pytest.mark.parametrize("name, value", [("tensor", 2), ("pipeline", 3), ("context", 0), ("sequence", True)])
def test_a_layout_that_is_not_available_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"parallel\.{name} is {value}.*data parallel only"):
        ParallelConfig(**{name: value})


def test_every_process_adds_a_data_parallel_rank():
    assert [ParallelConfig().data_size(world) for world in (1, 2, 7)] == [1, 2, 7]


def test_an_empty_world_is_refused():
    with pytest.raises(ValueError, match="the world has 0 processes"):
        ParallelConfig().data_size(0)
