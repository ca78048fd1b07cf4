"""A rehearsed rank against the same rank in earnest, and a world of 256 against the closed form of what it sends."""

import pytest

from contentv.engine import config_yaml
from tests.engine.small_run import small_config

EARNEST = "contentv.tests.engine.dry_run_programs:count_in_earnest"
REHEARSED = "contentv.tests.engine.dry_run_programs:rehearse_all"
CLIP = {"latents": [3, 6, 10], "text_tokens": 7}
MODEL = {"layers": 4, "heads": 3, "head_width": 16}


@pytest.fixture
def written(tmp_path):
    """A small run's configuration as a file."""

    def write(model=MODEL, **sections) -> str:
        config = small_config(tmp_path / "run", tmp_path / "shards", model=model, **sections)
        return str(config_yaml.save(config, tmp_path))

    return write


@pytest.mark.parametrize(
    "layout, trainer",
    [
        ({}, {}),
        ({"tensor": 2}, {"precision": "bf16"}),
        ({"tensor": 2, "sequence": True}, {"recompute": "selective"}),
        ({"context": 2}, {"precision": "bf16", "recompute": "full"}),
        ({"context": 2, "ulysses": 1}, {}),
        ({"pipeline": 2}, {"micro_batch": 2}),
        ({"pipeline": 2, "virtual_pipeline": 2}, {"recompute": "full", "recompute_blocks": 1}),
        ({"distributed_optimizer": False}, {}),
    ],
    ids=str,
)
def test_a_rehearsed_rank_holds_what_the_rank_holds(rank_server, written, layout, trainer):
    config = written(parallel=layout, trainer={"global_batch": 8, "micro_batch": 1, **trainer})
    real = rank_server.run(2, EARNEST, config=config, **CLIP)
    (rehearsed,) = rank_server.run(1, REHEARSED, config=config, size=2, **CLIP)
    assert sum(each["ranks"] for each in rehearsed) == 2
    for each in rehearsed:
        assert each["held"] == real[each["rank"]]["held"]
        assert each["peak"] == pytest.approx(real[each["rank"]]["peak"], rel=0.01)


@pytest.mark.parametrize(
    "layout",
    [
        {"tensor": 2, "sequence": True, "context": 4, "ulysses": 2},
        {"tensor": 2, "pipeline": 2, "virtual_pipeline": 2},
    ],
    ids=str,
)
def test_a_world_of_256_sends_what_the_closed_form_says(rank_server, written, layout):
    # Of a tiny one much would be megatron's filling of its buffers, up to 128 values a parameter and rank.
    model = {"layers": 4, "heads": 6, "head_width": 32}
    config = written(model=model, parallel=layout, trainer={"global_batch": 512, "micro_batch": 1, "precision": "bf16"})
    (rehearsed,) = rank_server.run(1, REHEARSED, config=config, size=256, **CLIP)
    assert sum(each["ranks"] for each in rehearsed) == 256
    for each in rehearsed:
        assert each["volume_difference"] < 0.01, each
        assert each["memory_difference"] < 0.05, each
        assert sum(each["sent"].values()) > 0
