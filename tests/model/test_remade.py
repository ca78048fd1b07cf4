"""What forward keeps for backward: the list, byte by byte, and gradients that do not notice."""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from contentv.kernels.registry import choose
from contentv.kernels.toolchains import native_refusal
from contentv.model.config import ModelConfig
from contentv.model.mmdit import build
from contentv.model.remade import remade
from contentv.model.weights import initialise
from contentv.parallel.config import ParallelConfig
from contentv.parallel.mesh import build_mesh

CONFIG = ModelConfig(layers=2, heads=3, head_width=16, text_width=8, pooled_width=8, initialisation="normal")
BATCH, VIDEO, TEXT = 2, 30, 7


class Storages(TorchDispatchMode):
    """Every storage that operations made, as opposed to what `given` lies in."""

    def __init__(self, given: list[torch.Tensor]):
        super().__init__()
        self.given = {tensor.untyped_storage()._cdata for tensor in given}
        self.found: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        outputs = function(*arguments, **(keywords or {}))
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.found[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return outputs

    def alive(self) -> list[int]:
        """Bytes of each that is still there."""
        found = [entry for place, entry in self.found.items() if place not in self.given]
        return [size for reference, size in found if not reference.expired()]


@pytest.mark.skipif(native_refusal() is not None, reason=f"only operators save what they promise: {native_refusal()}")
def test_a_block_keeps_what_is_listed():
    kernels = choose("cpu", "cpu_native")
    model = build(CONFIG, build_mesh(ParallelConfig()), kernels)
    initialise(model, CONFIG, seed=1)
    block, tokens = model.blocks["0"], model.mesh.sharing.tokens(video=VIDEO, text=TEXT)
    width, heads, rows = CONFIG.width, CONFIG.heads, BATCH * (VIDEO + TEXT)
    streams = [torch.randn(count, BATCH, width, requires_grad=True) for count in (VIDEO, TEXT)]
    condition = torch.randn(BATCH, width, requires_grad=True)
    with Storages([*streams, condition, *block.parameters()]) as storages:
        outputs = block(*streams, condition, tokens, None)
    # For each token: q, k, v; what attention gives; its projection; the MLP's hidden features before the activation;
    # the MLP's projection; the result. Nothing of the norms, of the normalised queries and keys, of the activation.
    features = rows * (3 * width + width + width + CONFIG.mlp_width + width + width)
    # The log-sum-exp, the reciprocals of the query and key norms, mean and reciprocal deviation of two norms.
    statistics = rows * (heads + 2 * heads + 4)
    condition_rows = 2 * BATCH * 6 * width
    assert sum(storages.alive()) == 4 * (features + statistics + condition_rows)
    assert all(output.grad_fn is not None for output in outputs)


def test_gradients_do_not_notice():
    """A product and a consumer that keeps a view, twice over, as accumulated microbatches run them."""
    weight = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    x, gain = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 4), (4,)))
    calls = []

    def make(x, gain):
        calls.append(1)
        return x.sin() * gain, x.exp()

    def use(first, second):
        return first @ weight.t(), second, second.t()[1:] @ first

    for function in (remade, lambda make, inputs, use: use(*make(*inputs))):
        losses = [sum(output.square().sum() for output in function(make, (x, gain), use)) for _ in range(2)]
        gradients = [torch.autograd.grad(loss, (x, gain, weight)) for loss in losses]
        calls.append(0)
        if function is remade:
            expected, counted = gradients, len(calls)
    assert counted == 2 + 2 + 1, "made once in forward and once in backward, however much is asked for"
    assert all(
        torch.equal(*pair)
        for one, other in zip(expected, gradients, strict=True)
        for pair in zip(one, other, strict=True)
    )


def test_an_input_changed_in_place_is_seen():
    x = torch.randn(3, requires_grad=True)
    kept = x * 1
    (out,) = remade(lambda kept: (kept.exp(),), (kept,), lambda made: (made * made,))
    with torch.no_grad():
        kept += 1
    with pytest.raises(AssertionError, match="changed in place"):
        out.sum().backward()


def test_without_gradients_nothing_is_kept():
    with torch.no_grad():
        (out,) = remade(lambda x: (x.exp(),), (torch.ones(2),), lambda made: (made * made,))
    assert out.grad_fn is None
