"""Any number of data-parallel ranks and any accumulation trains the same model, checkpoints included.

From an initialisation that leaves no path shut and without warm-up, for otherwise losses agree whatever the gradients
are; and gradient norms are compared beside losses, for Adam and clipping hide a gradient's scale.
"""

import pytest
import torch

from contentv.tests.parallel.programs import GLOBAL_BATCH

TRAIN = "contentv.tests.parallel.programs:train"
STEPS = 4
CLOSE = 1e-5
"""Relative, per tensor: fp32 sums in another order, through STEPS updates."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def alone(rank_server, folder):
    """The whole global batch in one forward pass of one rank, saved after STEPS and after STEPS / 2."""
    half = train(rank_server, 1, GLOBAL_BATCH, steps=STEPS // 2, save=str(folder / "alone-half"))
    whole = train(rank_server, 1, GLOBAL_BATCH, save=str(folder / "alone"))
    assert half["losses"] == whole["losses"][: STEPS // 2]
    return whole


@pytest.fixture(scope="module")
def together(rank_server, folder):
    """Two ranks, two passes each, saved half way and gone on from there in the same layout."""
    train(rank_server, 2, 2, steps=STEPS // 2, save=str(folder / "together-half"))
    return train(rank_server, 2, 2)


def train(rank_server, world: int, micro_batch: int, steps: int = STEPS, **more) -> dict:
    """What rank 0 saw, having checked that all ranks saw the same."""
    first, *others = rank_server.run(world, TRAIN, micro_batch=micro_batch, steps=steps, **more)
    assert first["data_size"] == world
    for other in others:
        assert other == first
    return first


def assert_close(found: dict, expected: dict, tolerance: float = CLOSE) -> None:
    for series in ("losses", "grad_norms"):
        assert found[series] == pytest.approx(expected[series][-len(found[series]) :], rel=tolerance), series
    for kind in ("weights", "average"):
        for name, reference in tensors(expected, kind).items():
            error = (tensors(found, kind)[name] - reference).norm()
            assert error <= tolerance * reference.norm(), f"{kind}, {name}: {error / reference.norm():.1e}"


def tensors(result: dict, kind: str) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in result[kind].items()}


def test_the_reference_run_is_worth_comparing_with(alone):
    weights, average = tensors(alone, "weights"), tensors(alone, "average")
    assert len(set(alone["losses"])) == STEPS and alone["losses"][0] > 0
    assert min(alone["grad_norms"]) > 0.5  # so clipping is at work
    assert all((weights[name] - average[name]).any() for name in weights if name != "blocks.1.text.q_gain.weight")


@pytest.mark.parametrize("world, micro_batch", [(1, 4), (2, 4), (2, 2)])
def test_a_layout_changes_nothing_but_rounding(rank_server, alone, world, micro_batch):
    assert_close(train(rank_server, world, micro_batch), alone)


@pytest.mark.slow
@pytest.mark.parametrize("world, micro_batch", [(4, 2), (4, 1), (8, 1)])
def test_a_larger_layout_changes_nothing_but_rounding(rank_server, alone, world, micro_batch):
    assert_close(train(rank_server, world, micro_batch), alone)


@pytest.mark.parametrize("saved_by, world, micro_batch", [("together-half", 1, 8), ("alone-half", 2, 4)])
def test_another_layout_goes_on_from_a_checkpoint(rank_server, folder, alone, together, saved_by, world, micro_batch):
    resumed = train(rank_server, world, micro_batch, start=STEPS // 2, load=str(folder / saved_by))
    assert_close(resumed, alone)


def test_the_same_layout_goes_on_bit_for_bit(rank_server, folder, together):
    resumed = train(rank_server, 2, 2, start=STEPS // 2, load=str(folder / "together-half"))
    assert resumed["losses"] == together["losses"][STEPS // 2 :]
    assert resumed["grad_norms"] == together["grad_norms"][STEPS // 2 :]
    assert resumed["weights"] == together["weights"] and resumed["average"] == together["average"]


def test_loading_and_saving_in_other_layouts_keeps_every_stored_bit(rank_server, folder, alone):
    for world, micro_batch, source, target in ((2, 4, "alone", "copied"), (1, 8, "copied", "returned")):
        train(rank_server, world, micro_batch, start=STEPS, load=str(folder / source), save=str(folder / target))
    (stored,) = rank_server.run(1, "contentv.tests.parallel.programs:same_stored_tensors",
                                folders=[str(folder / name) for name in ("alone", "copied", "returned")])  # fmt: skip
    assert stored["differing"] == [] and stored["count"] >= 5 * len(alone["weights"])


def test_bfloat16_trains_alike_in_every_layout(rank_server, alone):
    one, two = (train(rank_server, world, 4, precision="bf16") for world in (1, 2))
    # Weights of 8 bits: losses within that of fp32's, and layouts within each other's rounding.
    assert one["losses"] == pytest.approx(alone["losses"], rel=2e-2)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-2)
    assert two["grad_norms"] == pytest.approx(one["grad_norms"], rel=2e-2)
    for name, average in tensors(two, "average").items():
        assert (average - tensors(one, "average")[name]).norm() < 2e-2 * average.norm() + 1e-3, name
        assert set(two["weights"]) == set(two["average"])
