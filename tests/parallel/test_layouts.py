"""The layout matrix: however a world is divided, it trains what one process trains; and the faults this would show.

Five steps from an initialisation that leaves no path shut, without warm-up: losses, gradient norms before clipping, the
first step's gradients, and weights and their average after the last, tensor by tensor. Tokens do not divide: 7 of text
and 18 of video, or in turn 30, 5 and 18 where buckets are mixed.
"""

import json
from dataclasses import dataclass, field

import pytest

from tests.parallel.layouts import differences, disagreements, excess, run_layout

MODELS = {
    "four heads": {},
    "three heads": {"heads": 3},
    "six heads, sincos3d": {"heads": 6, "position": "sincos3d"},
    "eight heads": {"heads": 8},
    "eight blocks": {"layers": 8},
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One layout of a model, and how it is trained there."""

    world: int
    layout: dict = field(default_factory=dict)
    model: str = "four heads"
    mixed: bool = False
    how: dict = field(default_factory=dict)
    """Of what changes no number: recomputation, samples in a microbatch."""

    def __str__(self) -> str:
        how = {name: value for name, value in self.how.items() if name != "recompute"} | self.how.get("recompute", {})
        words = [f"{name} {value}" for name, value in (self.layout | how).items()]
        return ", ".join([f"{self.world} ranks", *words, self.model, *["mixed"] * self.mixed])


FULL, SELECTIVE = {"recompute": {"recomputed": "full"}}, {"recompute": {"recomputed": "selective"}}
FIRST = {"recompute": {"recomputed": "full", "recomputed_blocks": 1}}
SIX, THREE, EIGHT = "six heads, sincos3d", "three heads", "eight blocks"
SHARED = {"tensor": 2, "sequence": True}

BASE = {"model": {}, "mixed": False}

CASES = (
    Case(world=1, how={"micro_batch": 4}),
    Case(world=1, how=FULL),
    Case(world=1, how=SELECTIVE, mixed=True, model=THREE),
    Case(world=2, layout={"tensor": 2}),
    Case(world=2, layout={"tensor": 2, "overlap": False}, model=THREE, mixed=True, how=SELECTIVE),
    Case(world=2, layout=SHARED),
    Case(world=2, layout=SHARED, model=THREE, mixed=True, how={"micro_batch": 4}),
    Case(world=2, layout=SHARED, how=FULL),
    Case(world=2, layout=SHARED, model=SIX, how=SELECTIVE),
    Case(world=2, layout={"context": 2}),
    Case(world=2, layout={"context": 2}, model=THREE, mixed=True, how=FULL),
    Case(world=2, layout={"context": 2, "ulysses": 1}),
    Case(world=2, layout={"context": 2, "ulysses": 1}, model=THREE, mixed=True, how={"micro_batch": 2} | FULL),
    Case(world=2, layout={"pipeline": 2}),
    Case(world=2, layout={"pipeline": 2}, model=THREE, mixed=True, how=FIRST),
    Case(world=2, layout={"pipeline": 2, "virtual_pipeline": 2}, how=FIRST),
    Case(world=2, how={"micro_batch": 2}),
    Case(world=2, layout={"distributed_optimizer": False}, model=THREE, mixed=True),
    Case(world=4, layout={"tensor": 4}, model=SIX),
    Case(world=4, layout={"context": 4}, model=SIX),
    Case(world=4, layout={"context": 4, "ulysses": 2}, model=THREE, mixed=True),
    Case(world=4, layout={"pipeline": 4}),
    Case(world=4, layout={"pipeline": 4, "virtual_pipeline": 2}, model=EIGHT),
    Case(world=4, layout={"tensor": 2, "pipeline": 2}),
    Case(world=4, layout={**SHARED, "context": 2}, model=THREE, mixed=True),
    Case(world=4, layout={"pipeline": 2, "context": 2, "ulysses": 1}),
    Case(world=4, layout={"tensor": 2, "distributed_optimizer": False}),
    Case(world=8, layout={"tensor": 2, "pipeline": 2}),
)
WIDE = (
    Case(world=4, layout={"tensor": 4, "sequence": True}, model=SIX, mixed=True, how=FULL),
    Case(world=4, layout={"context": 4, "ulysses": 1}, model=SIX, mixed=True, how=SELECTIVE),
    Case(world=4, layout={"pipeline": 4, "virtual_pipeline": 2}, model=EIGHT, how=FIRST),
    Case(world=4, layout={**SHARED, "pipeline": 2, "virtual_pipeline": 2}, mixed=True),
    Case(world=4),
    Case(world=8, layout={**SHARED, "pipeline": 2, "context": 2, "ulysses": 1}, model=THREE, mixed=True),
    Case(world=8, layout={**SHARED, "pipeline": 2, "virtual_pipeline": 2}, how=FULL),
    Case(world=8, layout={"tensor": 2, "context": 2, "distributed_optimizer": False}, mixed=True, how=SELECTIVE),
    Case(world=8, layout={"context": 8, "ulysses": 2}, model=SIX, mixed=True),
    Case(world=8, layout={"context": 8, "ulysses": 1}, mixed=True),
    Case(world=8, layout={"pipeline": 4, "context": 2, "virtual_pipeline": 2}, model=EIGHT, how=FIRST),
    Case(world=8, layout={"tensor": 4, "sequence": True, "context": 2}, model=SIX),
    Case(world=8, layout={"tensor": 8, "sequence": True}, model="eight heads", mixed=True),
)


@pytest.fixture(scope="module")
def run(rank_server, tmp_path_factory):
    """Runs a layout, each only once; the world of one that it is compared with is `run(1, ...)` of the same model."""
    known = {}

    def run_once(world: int, layout: dict | None = None, **arguments) -> dict:
        key = json.dumps([world, layout, arguments], sort_keys=True)
        if key not in known:
            folder = tmp_path_factory.mktemp("ranks")
            known[key] = run_layout(rank_server, folder, world, layout=layout or {}, **arguments)
        return known[key]

    return run_once


def alike(run, case: Case) -> None:
    shared = {"model": MODELS[case.model], "mixed": case.mixed}
    found, alone = run(case.world, case.layout, **shared, **case.how), run(1, **shared)
    assert disagreements(found, alone) == {}


def test_the_world_of_one_is_worth_comparing_with(run):
    alone = run(1, **BASE)
    assert len(set(alone["losses"])) == 5
    assert min(alone["grad_norms"]) > 0.5  # clipping is at work
    idle = {name for name, gradient in alone["gradients"].items() if not gradient.any()}
    assert idle == {"blocks.3.text.q_gain.weight"}  # nobody asks the last text query
    assert sum(tensor.numel() for tensor in alone["weights"].values()) > 300_000


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_layout_changes_nothing_but_rounding(run, case):
    alike(run, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", WIDE, ids=str)
def test_a_wide_layout_changes_nothing_but_rounding(run, case):
    alike(run, case)


@pytest.mark.parametrize("model", [THREE, SIX])
def test_what_fills_pieces_up_is_never_seen(run, model):
    """Odd counts leave filling rows on tensor ranks; with other values in them not a bit of the run changes."""
    how = {"model": MODELS[model], "mixed": True, "micro_batch": 4}
    worst = differences(run(2, SHARED, fault="fill_with_garbage", **how), run(2, SHARED, **how))
    assert all(error == 0 for error, _ in worst.values()), worst


BF16_FLOOR = 2**-8
"""Half the spacing of bfloat16's 8 bits, relative: what a last rounding may add to a value that was right by luck."""
IN_BF16 = (
    Case(world=2, layout=SHARED, model=THREE, mixed=True),
    Case(world=2, layout={"context": 2}),
    Case(world=2, layout={"context": 2, "ulysses": 1}),
    Case(world=2, layout={"pipeline": 2}),
    Case(world=2, layout={"distributed_optimizer": False}, how={"micro_batch": 2}),
)
WIDE_IN_BF16 = (
    Case(world=4, layout={"tensor": 4, "sequence": True}, model=SIX, mixed=True, how=SELECTIVE),
    Case(world=4, layout={"context": 4, "ulysses": 2}, model=THREE, mixed=True),
    Case(world=4, layout={"pipeline": 2, "virtual_pipeline": 2}, how=FULL),
    Case(world=8, layout={**SHARED, "pipeline": 2, "context": 2, "ulysses": 1}, model=THREE, mixed=True),
)


def errs_no_more(run, case: Case) -> None:
    """err(layout bf16) <= 2 err(world of one bf16) + floor, both against the world of one in fp32."""
    shared = {"model": MODELS[case.model], "mixed": case.mixed}
    found = run(case.world, case.layout, precision="bf16", **shared, **case.how)
    assert excess(found, run(1, precision="bf16", **shared), run(1, **shared), BF16_FLOOR) == {}


@pytest.mark.parametrize("case", IN_BF16, ids=str)
def test_bf16_errs_no_more_in_a_layout_than_in_one_process(run, case):
    errs_no_more(run, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", WIDE_IN_BF16, ids=str)
def test_bf16_errs_no_more_in_a_wide_layout_than_in_one_process(run, case):
    errs_no_more(run, case)


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A fault, the layout it concerns, and what of the comparison goes red."""

    fault: str
    layout: dict
    seen: set
    unseen: frozenset = frozenset()
    """What would call the runs alike, even from this initialisation."""


RING, GRADIENTS, WEIGHTS = {"context": 2, "ulysses": 1}, {"gradients", "grad_norms"}, {"weights", "averages"}
FAULTS = (
    Planted(fault="lose_keys_in_the_ring", layout=RING, seen=GRADIENTS | WEIGHTS),
    Planted(fault="lose_keys_in_the_exchange", layout={"context": 2}, seen=GRADIENTS | WEIGHTS),
    # Clipping hides the factor, and so would Adam: every update is the right one.
    Planted(fault="scale_by_the_context", layout=RING, seen=GRADIENTS, unseen={"losses", "copies"} | WEIGHTS),
    Planted(
        fault="leave_gains_unreduced",
        layout={"tensor": 2},
        seen={"gradients", "copies"} | WEIGHTS,
        unseen={"losses", "grad_norms"},
    ),
    Planted(fault="leave_adaln_unreduced", layout=SHARED, seen=GRADIENTS | WEIGHTS, unseen={"copies"}),
    Planted(fault="swap_streams", layout={"pipeline": 2}, seen={"losses"} | GRADIENTS | WEIGHTS, unseen={"copies"}),
    Planted(fault="forget_marks", layout=SHARED, seen={"losses", "copies"} | GRADIENTS | WEIGHTS),
    Planted(
        fault="batch_sends",
        layout={"pipeline": 2, "virtual_pipeline": 2},
        seen={"losses"} | GRADIENTS | WEIGHTS,
        unseen={"copies"},
    ),
)


@pytest.mark.parametrize("planted", FAULTS, ids=lambda planted: planted.fault)
def test_a_planted_fault_turns_the_matrix_red(run, planted):
    red = disagreements(run(2, planted.layout, fault=planted.fault, **BASE), run(1, **BASE))
    assert planted.seen <= set(red) and planted.unseen.isdisjoint(red), red


@pytest.mark.parametrize("planted", FAULTS, ids=lambda planted: planted.fault)
def test_losses_from_adaln_zero_in_warm_up_see_no_fault(run, planted):
    """Why the matrix starts elsewhere, and compares more."""
    usual = {"model": {"initialisation": "adaln_zero"}, "mixed": False, "learning_rate": 1e-6}
    assert "losses" not in disagreements(run(2, planted.layout, fault=planted.fault, **usual), run(1, **usual))
