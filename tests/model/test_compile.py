"""torch.compile follows a whole block: one graph, no break, and eager's bits where operations stay what they are."""

import pytest
import torch
from torch._dynamo.utils import counters

from contentv.kernels.registry import choose
from contentv.model.config import ModelConfig
from contentv.model.mmdit import build
from contentv.model.positions import rope3d
from contentv.model.weights import initialise
from contentv.parallel.config import ParallelConfig
from contentv.parallel.mesh import build_mesh

CONFIG = ModelConfig(
    layers=2, heads=2, head_width=32, text_width=40, pooled_width=24, initialisation="normal", position="rope3d"
)
GRID, TEXT, BATCH = (2, 3, 3), 5, 2
VIDEO = GRID[0] * GRID[1] * GRID[2]


def gradients(block, call, model) -> list[torch.Tensor]:
    """Both streams, and the gradients of inputs and parameters."""
    tokens = model.mesh.sharing.tokens(video=VIDEO, text=TEXT)
    rotation = rope3d(GRID, CONFIG.head_width, range(VIDEO), torch.device("cpu"))
    generator = torch.Generator().manual_seed(3)
    shapes = (VIDEO, BATCH, CONFIG.width), (TEXT, BATCH, CONFIG.width), (BATCH, CONFIG.width)
    inputs = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    video_SBD, text_TBD = call(*inputs, tokens, rotation)
    block.zero_grad()
    (video_SBD.square().sum() + text_TBD.square().sum()).backward()
    return [video_SBD, text_TBD, *(source.grad for source in (*inputs, *block.parameters()))]


@pytest.mark.parametrize("layer", ["0", "1"])
@pytest.mark.parametrize("recomputed", ["none", "selective", "full"])
def test_a_compiled_block_is_the_eager_one(recomputed, layer):
    model = build(CONFIG, build_mesh(ParallelConfig()), choose("cpu"), recomputed=recomputed)
    initialise(model, CONFIG, seed=1)
    block = model.blocks[layer]
    expected = gradients(block, block, model)
    torch._dynamo.reset()
    counters.clear()
    # aot_eager: the graphs of forward and backward are taken and run as they are, with no other rounding.
    found = gradients(block, torch.compile(block, backend="aot_eager"), model)
    assert sum(counters["graph_break"].values()) == 0 and counters["stats"]["unique_graphs"] == 1
    for one, other in zip(expected, found, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)
