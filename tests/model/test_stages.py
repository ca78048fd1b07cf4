"""Runs of blocks on a pipeline: whole, in order, and balanced as well as can be."""

import itertools

import pytest

from contentv.model.config import ModelConfig, contentv_8b
from contentv.model.cost import count_block_operations, count_end_operations
from contentv.model.stages import TEXT_TOKENS, VIDEO_TOKENS, Stage, stages

CLIP = {"video_tokens": VIDEO_TOKENS, "text_tokens": TEXT_TOKENS}


def model(layers: int, **sizes) -> ModelConfig:
    return ModelConfig(**{"layers": layers, "heads": 4, "head_width": 16, "text_width": 12, "pooled_width": 10} | sizes)


def costs(config: ModelConfig) -> list[int]:
    """Of every block, those of the model's ends included."""
    found = [count_block_operations(config, layer, **CLIP) for layer in range(config.layers)]
    first, last = count_end_operations(config, **CLIP)
    return [found[0] + first, *found[1:-1], found[-1] + last] if config.layers > 1 else [found[0] + first + last]


def unevenness(config: ModelConfig, edges: tuple[int, ...]) -> int:
    each = costs(config)
    return sum(sum(each[begin:end]) ** 2 for begin, end in itertools.pairwise(edges))


@pytest.mark.parametrize("layers", range(1, 11))
@pytest.mark.parametrize(
    "sizes", [{}, {"text_width": 2**24}, {"channels": 2**20}], ids=["usual", "heavy head", "heavy ends"]
)
def test_no_other_division_is_more_even(layers, sizes):
    config = model(layers, **sizes)
    for count in range(1, layers + 1):
        runs = stages(config, count)
        assert [block for run in runs for block in run.blocks] == list(range(layers))
        assert all(len(run.blocks) for run in runs) and len(runs) == count
        found = tuple(run.begin for run in runs) + (layers,)
        every = ((0, *inner, layers) for inner in itertools.combinations(range(1, layers), count - 1))
        assert unevenness(config, found) == min(unevenness(config, edges) for edges in every)


@pytest.mark.parametrize("count, sizes", [(2, [19, 19]), (4, [9, 9, 10, 10])])
def test_contentvs_38_blocks(count, sizes):
    """In four, the last run has a lighter block, and the first the embedding: the two spare blocks go to the end."""
    assert [len(run.blocks) for run in stages(contentv_8b(), count)] == sizes


def test_the_last_block_asks_no_text_and_the_ends_count():
    lighter = costs(contentv_8b())
    assert lighter[-1] < lighter[1] < lighter[0]
    # Caption tokens so wide that embedding them outweighs blocks, and latents of so many channels that both ends do.
    heavy_head, heavy_ends = stages(model(8, text_width=2**24), 2), stages(model(8, channels=2**20), 3)
    assert [len(run.blocks) for run in heavy_head] == [3, 5]
    assert len(heavy_ends[1].blocks) > max(len(heavy_ends[0].blocks), len(heavy_ends[2].blocks))


def test_what_a_run_knows_of_itself():
    first, middle, last = stages(model(6), 3)
    assert [(run.is_first, run.is_last) for run in (first, middle, last)] == [
        (True, False),
        (False, False),
        (False, True),
    ]
    assert Stage(0, 6, 6).is_first and Stage(0, 6, 6).is_last
    assert list(middle.recomputing(0)) == list(middle.blocks) and list(middle.recomputing(1)) == [middle.begin]
    assert list(middle.recomputing(9)) == list(middle.blocks)
