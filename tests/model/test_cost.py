"""Operations of a step against torch's own counter, on the model that really runs; not one product may be missed."""

import contextlib
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from contentv.kernels.registry import choose
from contentv.model.config import ModelConfig, contentv_8b
from contentv.model.cost import count_operations
from contentv.model.mmdit import MMDiT, build
from contentv.model.weights import initialise
from contentv.parallel.config import ParallelConfig
from contentv.parallel.mesh import build_mesh

KERNELS = choose("cpu", {"joint_attention": "reference"})
SMALL = ModelConfig(layers=3, heads=2, head_width=32, text_width=40, pooled_width=24, position="rope3d")
WIDE = ModelConfig(layers=1, heads=3, head_width=48, text_width=17, pooled_width=9, channels=5)
CASES = [  # model, batch, latent grid, text tokens
    (SMALL, 2, (3, 4, 6), 5),
    (replace(SMALL, position="sincos3d"), 1, (5, 8, 2), 77),
    (WIDE, 3, (1, 6, 10), 1),
    (replace(WIDE, layers=2, position="rope3d"), 1, (2, 2, 2), 13),
]


@pytest.fixture(scope="module")
def mesh():
    return build_mesh(ParallelConfig())


class WholeModel(contextlib.nullcontext):
    """In place of the counter's bookkeeping by module, whose hooks fail inside a recomputed block."""

    parents = ("Global",)


def counted(run) -> int:
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = WholeModel()
    with counter:
        run()
    return counter.get_total_flops()


RECOMPUTE = [("none", 0), ("full", 0), ("selective", 0), ("full", 1), ("selective", 2)]


@pytest.mark.parametrize("config, batch, grid, text", CASES)
@pytest.mark.parametrize("recompute, blocks", RECOMPUTE)
def test_operations_are_those_torch_counts(mesh, config, batch, grid, text, recompute, blocks):
    model = build(config, mesh, KERNELS, recomputed=recompute, recomputed_blocks=blocks)
    initialise(model, replace(config, initialisation="normal"), seed=0)
    inputs = (
        torch.randn(batch, config.channels, *grid),
        torch.rand(batch),
        torch.randn(batch, text, config.text_width),
        torch.randn(batch, config.pooled_width),
    )
    tokens = grid[0] * grid[1] * grid[2] // 4
    operations = count_operations(
        config, video_tokens=tokens, text_tokens=text, batch=batch, recompute=recompute,
        recomputing=model.stage.recomputing(blocks),
    )  # fmt: skip
    with torch.no_grad():
        assert counted(lambda: model(*inputs)) == operations.forward
    assert counted(lambda: model(*inputs).square().mean().backward()) == operations.hardware
    assert operations.model == operations.forward + operations.backward


def test_recomputing_changes_what_runs_and_not_what_is_asked():
    sizes = {"video_tokens": 30, "text_tokens": 7, "batch": 2}
    plain, recomputing = (count_operations(SMALL, **sizes, recompute=wish) for wish in ("none", "full"))
    assert plain.model == recomputing.model < plain.hardware < recomputing.hardware


def test_the_8b_model_is_counted_alike(mesh):
    config = contentv_8b()
    with torch.device("meta"):
        model = MMDiT(config, mesh, KERNELS)
        inputs = torch.empty(1, 16, 5, 16, 24), torch.empty(1), torch.empty(1, 333, 4096), torch.empty(1, 2048)
        executed = counted(lambda: model(*inputs).square().mean().backward())
    assert executed == count_operations(config, video_tokens=480, text_tokens=333, batch=1).hardware


def test_operations_grow_with_the_batch_and_approach_six_a_weight_and_token():
    config, tokens = contentv_8b(), 36_864
    one, three = (
        count_operations(config, video_tokens=tokens, text_tokens=77, batch=batch, recompute="full") for batch in (1, 3)
    )
    assert vars(three) == {name: 3 * value for name, value in vars(one).items()}
    attention = 12 * config.layers * (tokens + 77) ** 2 * config.width
    # 4 D^2 of the attention's and 8 D^2 of the MLP's weights in each block meet every video token.
    assert (one.model - attention) / (6 * tokens) == pytest.approx(12 * config.layers * config.width**2, rel=0.01)
