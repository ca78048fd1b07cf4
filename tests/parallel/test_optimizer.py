"""The distributed optimizer against torch's own AdamW, clipping and a plain average, in a world of one."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from contentv.kernels.registry import choose
from contentv.parallel.config import ParallelConfig
from contentv.parallel.layers import ShardedModule
from contentv.parallel.megatron import DistributedOptimizer
from contentv.parallel.mesh import build_mesh
from contentv.parallel.optimizer import AdamWSettings, Optimizer
from contentv.parallel.training import DataParallel, Microbatches, Shape

SETTINGS = AdamWSettings(
    beta1=0.8, beta2=0.95, epsilon=1e-5, weight_decay=0.3, decay_biases_and_gains=False, clip=4.5, ema_decay=0.75
)
RATES = [1e-2, 3e-2, 0.0, 2e-2, 1e-3, 1e-2]


class Tiny(ShardedModule):
    """Odd sizes: 5 x 7 and 3 x 5 matrices, a bias, a gain."""

    def __init__(self):
        super().__init__(None)
        generator = torch.Generator().manual_seed(2)
        self.inner = torch.nn.Linear(7, 5)
        self.outer = torch.nn.Linear(5, 3, bias=False)
        self.gain = torch.nn.Parameter(torch.ones(5))
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(self.inner(x).tanh() * self.gain)


@pytest.fixture(scope="module")
def mesh():
    return build_mesh(ParallelConfig())


def prepared(mesh, settings, dtype=torch.float32) -> tuple[DataParallel, Optimizer]:
    model = DataParallel([Tiny().to(dtype)], mesh, Shape(layers=1, width=5, heads=1), dtype)
    optimizer = Optimizer(model, settings, choose("cpu"))
    optimizer.start_from((parameter, parameter.detach()) for parameter in model.modules[0].parameters())
    return model, optimizer


def batches(step: int, count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    # Steps of very different gradients, so that clipping is at work in some and idle in others.
    return [torch.randn(4, 7, generator=generator) * 3.0 ** (step % 3 - 1) for _ in range(count)]


def loss_of(batch: torch.Tensor, module: torch.nn.Module) -> torch.Tensor:
    return module(batch.to(next(module.parameters()).dtype)).float().square().mean()


def step_of(module: torch.nn.Module, batch: torch.Tensor):
    return loss_of(batch, module), lambda loss: loss


def microbatches(count: int) -> Microbatches:
    return Microbatches(count=count, samples=4, packed_rows=1)


def torch_run(settings: AdamWSettings, count: int) -> dict:
    """The same steps in plain torch: losses, norms, weights and average."""
    module = Tiny()
    average = deepcopy(module)
    decayed = [module.inner.weight, module.outer.weight]
    spared = [module.inner.bias, module.gain]
    decay = settings.weight_decay
    groups = [
        {"params": decayed, "weight_decay": decay},
        {"params": spared, "weight_decay": decay if settings.decay_biases_and_gains else 0.0},
    ]
    adamw = torch.optim.AdamW(groups, betas=(settings.beta1, settings.beta2), eps=settings.epsilon)
    losses, norms = [], []
    for step, rate in enumerate(RATES, 1):
        adamw.zero_grad()
        loss = torch.stack([loss_of(batch, module) for batch in batches(step, count)]).mean()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(module.parameters(), settings.clip or float("inf")))
        for group in adamw.param_groups:
            group["lr"] = rate
        adamw.step()
        losses.append(loss.detach())
        with torch.no_grad():
            for mean, parameter in zip(average.parameters(), module.parameters(), strict=True):
                mean.mul_(settings.ema_decay).add_(parameter, alpha=1 - settings.ema_decay)
    named = {name: parameter.detach() for name, parameter in module.named_parameters()}
    averaged = {name: parameter.detach() for name, parameter in average.named_parameters()}
    return {"losses": losses, "norms": norms, "weights": named, "average": averaged}


def our_run(mesh, settings: AdamWSettings, count: int) -> dict:
    model, optimizer = prepared(mesh, settings)
    losses, norms = [], []
    for step, rate in enumerate(RATES, 1):
        losses.append(model.forward_backward(step_of, batches(step, count), microbatches(count)))
        norms.append(optimizer.gradient_norm())
        optimizer.update(step, rate, norms[-1])
    named = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return {"losses": losses, "norms": norms, "weights": named, "average": optimizer.averaged()}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [SETTINGS, replace(SETTINGS, decay_biases_and_gains=True), replace(SETTINGS, clip=0.0)],
    ids=["published", "everything decays", "no clipping"],
)
def test_updates_are_torchs(mesh, settings, count):
    expected, found = torch_run(settings, count), our_run(mesh, settings, count)
    assert min(expected["norms"]) < SETTINGS.clip < max(expected["norms"])
    for kind in ("losses", "norms"):
        torch.testing.assert_close(torch.stack(found[kind]), torch.stack(expected[kind]), rtol=1e-5, atol=0)
    for kind in ("weights", "average"):
        assert found[kind].keys() == expected[kind].keys()
        for name, tensor in expected[kind].items():
            torch.testing.assert_close(found[kind][name], tensor, rtol=1e-5, atol=1e-6, msg=f"{kind}, {name}")


def test_without_an_average_the_updates_are_the_same_and_none_is_kept(mesh):
    results = []
    for settings in (SETTINGS, replace(SETTINGS, ema_decay=None)):
        model, optimizer = prepared(mesh, settings)
        for step, rate in enumerate(RATES, 1):
            model.forward_backward(step_of, batches(step, 1), microbatches(1))
            optimizer.update(step, rate, optimizer.gradient_norm())
        results.append([parameter.detach().clone() for parameter in model.modules[0].parameters()])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    assert not optimizer.sharded.optimizer.averages
    with pytest.raises(AssertionError, match="keeps no average"):
        optimizer.averaged()


def test_the_loss_of_accumulated_batches_is_their_mean(mesh):
    model, _ = prepared(mesh, SETTINGS)
    pieces = batches(1, 3)
    expected = torch.stack([loss_of(piece, Tiny()) for piece in pieces]).mean()
    torch.testing.assert_close(
        model.forward_backward(step_of, pieces, microbatches(3)), expected.detach(), rtol=1e-6, atol=0
    )


def test_gradients_do_not_pile_up_over_steps(mesh):
    model, optimizer = prepared(mesh, SETTINGS)
    norms = []
    for _ in range(2):
        model.forward_backward(step_of, batches(1, 2), microbatches(2))
        norms.append(optimizer.gradient_norm())
    assert torch.equal(*norms)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masters_and_average_start_from_the_given_weights_in_full(mesh, dtype):
    model, optimizer = prepared(mesh, SETTINGS, dtype)
    given = {name: parameter.detach().float() + 1 / 3 for name, parameter in model.named_parameters()}
    optimizer.start_from((parameter, given[name]) for name, parameter in model.named_parameters())
    model.forward_backward(step_of, batches(1, 1), microbatches(1))
    optimizer.update(1, 0.0, optimizer.gradient_norm())  # writes the masters back; at rate 0 they are what they were
    averages, masters = optimizer.averaged(), list(optimizer.sharded.optimizer.averages)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), given[name].to(dtype), rtol=0, atol=0)
        torch.testing.assert_close(averages[name], given[name], rtol=1e-6, atol=1e-7)
        assert any(torch.equal(master.detach(), given[name].flatten()) for master in masters), name


def test_bfloat16_weights_are_the_rounded_masters(mesh):
    model, optimizer = prepared(mesh, replace(SETTINGS, ema_decay=0.0), torch.bfloat16)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for step in range(1, 21):
        model.forward_backward(step_of, batches(step, 1), microbatches(1))
        optimizer.update(step, 1e-4, optimizer.gradient_norm())
    moved = 0
    for name, parameter in model.named_parameters():
        master = optimizer.averaged()[name]  # without memory the average is the master itself
        assert master.dtype == torch.float32 and parameter.dtype == torch.bfloat16
        assert torch.equal(master.bfloat16(), parameter.detach())
        assert not torch.equal(master, parameter.detach().float())
        moved += (parameter.detach() != before[name]).sum().item()
    assert moved  # steps far below bf16's spacing add up in the masters


def test_the_update_writes_the_bits_that_megatrons_copy_would(mesh):
    """In 16 bits, the rounded masters; in 32 the model computes with the masters themselves."""
    copy = DistributedOptimizer._copy_main_params_to_model_params
    for dtype in (torch.bfloat16, torch.float32):
        model, optimizer = prepared(mesh, SETTINGS, dtype)
        assert bool(optimizer.sharded.optimizer.copies) == (dtype == torch.bfloat16)
        for step, rate in enumerate(RATES, 1):
            model.forward_backward(step_of, batches(step, 2), microbatches(2))
            optimizer.update(step, rate, optimizer.gradient_norm())
            updated = [parameter.detach().clone() for _, parameter in model.named_parameters()]
            copy(optimizer.sharded)
            assert all(torch.equal(one, each) for one, (_, each) in zip(updated, model.named_parameters(), strict=True))


def test_bias_correction_follows_the_run_not_the_state(mesh, monkeypatch):
    """Where apex or transformer-engine is installed, megatron neither saves nor restores the step of the moments."""
    from megatron.core.optimizer import distrib_optimizer

    monkeypatch.setattr(distrib_optimizer, "HAVE_APEX_OR_TE", True)
    (model, optimizer), (expected, whole) = prepared(mesh, SETTINGS), prepared(mesh, SETTINGS)
    for number in (1, 2, 3):
        for one, other in ((model, optimizer), (expected, whole)):
            one.forward_backward(step_of, batches(number, 1), microbatches(1))
            other.update(number, 1e-2, other.gradient_norm())
        for state in optimizer.sharded.optimizer.state.values():
            state["step"] = torch.tensor(0.0)  # what such a load leaves
    for mine, theirs in zip(model.modules[0].parameters(), expected.modules[0].parameters(), strict=True):
        assert torch.equal(mine, theirs)
