"""Layers of a tensor group of one against torch's, slices of whole parameters, and what joins a world."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as functional

from contentv.kernels.registry import TABLE
from contentv.parallel.config import ParallelConfig
from contentv.parallel.layers import WHOLE, LayerFactory, leave_buffers, piece_of, recompute, writes_gradient
from contentv.parallel.linear import finish_gradients
from contentv.parallel.mesh import build_mesh
from contentv.tests.ranks import RankFailure


@pytest.fixture(scope="module")
def mesh():
    return build_mesh(ParallelConfig())


@pytest.fixture(params=["megatron's", "ours"])
def product(request):
    """What the linears multiply with: torch's products as megatron calls them, or a kernel of ours."""
    return None if request.param == "megatron's" else TABLE["matrix_product", "reference"].load()


@pytest.fixture
def factory(mesh, product):
    return LayerFactory(mesh, torch.float32, product)


def drawn(layer: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(4)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return layer


@pytest.mark.parametrize("kind", ["column", "gathered column", "row", "replicated"])
def test_a_linear_is_torchs_with_its_gradients(factory, kind):
    make = {
        "column": factory.column,
        "gathered column": factory.sample,
        "row": factory.row,
        "replicated": factory.replicated,
    }
    layer = drawn(make[kind](7, 5))
    x, cotangent = torch.randn(3, 2, 7, requires_grad=True), torch.randn(3, 2, 5)
    found = layer(x)
    expected = functional.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(found, expected)
    sources = (x, layer.weight, layer.bias)
    for one, other in zip(
        torch.autograd.grad(found, sources, cotangent), torch.autograd.grad(expected, sources, cotangent), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_bias_apart_is_left_to_the_caller(factory):
    layer = drawn(factory.column(7, 5, bias_apart=True))
    x = torch.randn(3, 2, 7)
    torch.testing.assert_close(layer(x), functional.linear(x, layer.weight))
    assert layer.bias.shape == (5,)


def test_a_gain_gives_its_weight_and_takes_its_gradient(factory):
    gain = drawn(factory.gain(6))
    (gradient,) = torch.autograd.grad(gain() @ torch.arange(6.0), gain.weight)
    assert torch.equal(gradient, torch.arange(6.0))


def test_layers_lie_on_the_default_device_in_the_factorys_dtype(mesh):
    with torch.device("meta"):
        factory = LayerFactory(mesh, torch.bfloat16)
        layers = factory.column(4, 6), factory.row(4, 6), factory.replicated(4, 6), factory.gain(4)
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    assert len(parameters) == 7
    assert {(parameter.device.type, parameter.dtype) for parameter in parameters} == {("meta", torch.bfloat16)}


@pytest.mark.parametrize("kind, dim", [("column", 0), ("row", 1)])
def test_a_rank_holds_its_piece_of_a_cut_matrix(factory, kind, dim):
    layer = getattr(factory, kind)(6, 4)
    whole = torch.arange(24.0).view(4, 6)
    second = SimpleNamespace(tensor=SimpleNamespace(size=lambda: 2, rank=lambda: 1))
    piece = piece_of(layer.weight, second)
    assert torch.equal(whole[piece.bounds((4, 6))], whole[2:] if dim == 0 else whole[:, 3:])
    # Cut with the rows of a column linear, held whole beside a row linear.
    bias = torch.arange(4.0)[piece_of(layer.bias, second).bounds((4,))]
    assert bias.tolist() == ([2, 3] if dim == 0 else [0, 1, 2, 3])
    assert piece_of(torch.nn.Parameter(whole), second) == WHOLE
    assert torch.equal(whole[WHOLE.bounds((4, 6))], whole)


def test_recomputing_repeats_the_random_state():
    x = torch.ones(100, requires_grad=True)
    calls = []

    def drop(values):
        calls.append(1)
        return functional.dropout(values, 0.5)

    found = recompute(drop, x)
    found.sum().backward()
    assert len(calls) == 2
    assert torch.equal(x.grad, found.detach()) and 0 < found.count_nonzero() < 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_products_weight_gradient_is_added_to_its_buffer(mesh, product, dtype):
    """By the product itself, over microbatches; torch rounds bf16 products before it adds them up in fp32 on a CPU."""
    layer = LayerFactory(mesh, dtype, product).column(6, 5)
    torch.nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
    layer.weight.main_grad = torch.full((5, 6), torch.nan if product else 0.0)  # ours writes the first one over it
    layer.weight.grad_added_to_main_grad = False
    layer.gradient_accumulation_fusion = True
    torch.nn.init.zeros_(layer.bias)
    expected = torch.zeros(5, 6)
    for seed in range(3):
        x, d_y = (torch.randn(7, 2, size, generator=torch.Generator().manual_seed(seed)).to(dtype) for size in (6, 5))
        layer(x.requires_grad_()).backward(d_y)
        left, right = (each.detach().flatten(0, 1).to(torch.float32 if product else dtype) for each in (d_y, x))
        expected += left.t() @ right
    assert layer.weight.grad_added_to_main_grad
    torch.testing.assert_close(layer.weight.main_grad, expected, rtol=1e-6, atol=1e-6)


def test_a_weight_no_sample_reached_has_a_gradient_of_zeros():
    weights = [torch.nn.Parameter(torch.ones(2, 3)) for _ in range(2)]
    for weight, is_reached in zip(weights, (True, False), strict=True):
        weight.main_grad, weight.grad_added_to_main_grad = torch.full((2, 3), 7.0), is_reached
    finish_gradients(weights)
    assert weights[0].main_grad.eq(7).all() and weights[1].main_grad.eq(0).all()


def test_who_writes_a_gradient_and_who_adds_it(mesh):
    """Only what our own product makes, and no message is sent for meanwhile, is written over a buffer uncleared."""
    ours = TABLE["matrix_product", "reference"].load()
    layer = LayerFactory(mesh, torch.float32, ours).column(6, 5)
    assert not writes_gradient(layer), "no buffer yet"
    layer.gradient_accumulation_fusion = True
    assert writes_gradient(layer)
    layer.allreduce_dgrad = True
    assert not writes_gradient(layer)
    layer.allreduce_dgrad, layer.product = False, None
    assert not writes_gradient(layer)
    layer.product = ours
    leave_buffers(layer)
    assert not writes_gradient(layer)


def test_a_world_announced_in_part_is_refused(rank_server):
    told = r"sets RANK and WORLD_SIZE of several processes, but not MASTER_PORT: start ranks with torchrun"
    with pytest.raises(RankFailure, match=told):
        rank_server.run(1, "contentv.tests.parallel.programs:announce_in_part")


def test_a_second_mesh_is_the_first_ones_groups(mesh):
    again = build_mesh(ParallelConfig())
    assert again == mesh and (again.rank, again.world_size, again.data_rank, again.data_size) == (0, 1, 0, 1)
