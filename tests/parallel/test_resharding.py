"""A checkpoint does not know the layout it was saved in: every bit stays, and any layout goes on from any other's.

No random state is among what moves: every random quantity of training is a function of (seed, sample, step) by counter.
The learning rate and the data cursor come from the step, which the engine keeps beside the tensors.
"""

import pytest

from contentv.model.config import ModelConfig
from contentv.model.cost import parameter_shapes
from contentv.tests.parallel.resharding_programs import MODEL

PROGRAMS = "contentv.tests.parallel.resharding_programs"
LIVE = f"{PROGRAMS}:live"

LAYOUTS = {
    "alone": (1, {}),
    "tp4": (4, {"tensor": 4}),
    "tp2 sp": (2, {"tensor": 2, "sequence": True}),
    "cp2": (2, {"context": 2}),
    "pp2": (2, {"pipeline": 2}),
    "pp2 vpp2": (2, {"pipeline": 2, "virtual_pipeline": 2}),
    "dp2": (2, {}),
    "dp2 whole": (2, {"distributed_optimizer": False}),
    "tp2 pp2": (4, {"tensor": 2, "pipeline": 2}),
}
WIDER = {
    "dp4": (4, {}),
    "dp4 whole": (4, {"distributed_optimizer": False}),
    "tp2 dp2": (4, {"tensor": 2, "distributed_optimizer": False}),
    "tp2 cp2": (4, {"tensor": 2, "sequence": True, "context": 2}),
    "ring4": (4, {"context": 4, "ulysses": 1}),
    "ulysses2 ring2": (4, {"context": 4, "ulysses": 2}),
    "pp4": (4, {"pipeline": 4}),
    "tp2 pp2 vpp2": (4, {"tensor": 2, "sequence": True, "pipeline": 2, "virtual_pipeline": 2}),
}
NAMES = list(LAYOUTS)
SOURCES = {name: (NAMES[(at + 2) % len(NAMES)], NAMES[(at + 5) % len(NAMES)]) for at, name in enumerate(NAMES)}
"""Whose checkpoints each layout goes on from; every layout's are read twice."""
READING_WEIGHTS = ("tp4", "pp2 vpp2")
"""Layouts that also read weights and average back without an optimizer."""
SAVED, HANDED_OVER, LAST = 2, 4, 7
CLOSE = 1e-5


class History:
    """One world trains and saves; every layout loads that, saves it at once, trains on and saves again."""

    def __init__(self, rank_server, folder, precision="fp32"):
        self.server, self.folder, self.precision = rank_server, folder, precision
        self.curves: dict[str, list] = {}
        acts = [["train", 1, SAVED], ["save", self.path("origin")], ["train", SAVED + 1, LAST]]
        first, _, rest = self.live((1, {}), acts)
        self.undisturbed = first + rest

    def path(self, name: str, kind: str = "") -> str:
        return str(self.folder / f"{name} {kind}".strip().replace(" ", "-"))

    def live(self, layout, acts: list) -> list:
        world, degrees = layout
        answers = self.server.run(world, LIVE, layout=degrees, acts=acts, precision=self.precision, timeout=200)
        assert all(answer == answers[0] for answer in answers)
        return answers[0]

    def pass_on(self, name: str) -> str:
        """What this layout saved after it had trained on from the origin."""
        if name not in self.curves:
            acts = [
                ["load", self.path("origin")],
                ["save", self.path(name, "copy")],
                ["train", SAVED + 1, HANDED_OVER],
                ["save", self.path(name, "trained")],
            ]
            if name in READING_WEIGHTS:
                acts.append(["read weights", self.path(name, "trained")])
            _, _, self.curves[name], _, *wrong = self.live((LAYOUTS | WIDER)[name], acts)
            assert not any(wrong)
        return self.path(name, "trained")


@pytest.fixture(scope="module")
def history(rank_server, tmp_path_factory):
    return History(rank_server, tmp_path_factory.mktemp("resharding"))


@pytest.fixture(scope="module")
def stored(rank_server, history):
    """For every layout, what it stored otherwise than the checkpoint it had just loaded."""
    for name in LAYOUTS:
        history.pass_on(name)
    copies = {name: history.path(name, "copy") for name in LAYOUTS}
    (found,) = rank_server.run(
        1, f"{PROGRAMS}:compare", origin=history.path("origin"), folders=list(copies.values()), timeout=200
    )
    return {name: found[copy] for name, copy in copies.items()}


def close(found: list, expected: list):
    assert found == [pytest.approx(pair, rel=CLOSE) for pair in expected]


def test_the_origin_is_worth_moving(rank_server, history):
    (inside,) = rank_server.run(1, f"{PROGRAMS}:look_inside", folder=history.path("origin"))
    names = [name for name in inside["tensors"] if not name.startswith("optimizer.")]
    config = ModelConfig(layers=4, text_width=12, pooled_width=10, channels=4, position="rope3d", **MODEL)
    assert sum(len(parts) > 0 for parts in parameter_shapes(config).values()) > len(names) > 100
    # Weights, masters, two moments and the average of each, and not one row of a head that is none.
    kinds = ("", *(f"optimizer.state.{kind}." for kind in ("param", "exp_avg", "exp_avg_sq", "ema")))
    for name in names:
        assert len({tuple(inside["tensors"][kind + name][1:]) for kind in kinds}) == 1
    assert inside["tensors"]["blocks.0.video.qkv.weight"] == ["torch.float32", 3 * 96, 96]
    assert len(inside["tensors"]) == len(kinds) * len(names)
    losses = [loss for loss, _ in history.undisturbed]
    assert len(set(losses)) == LAST and all(norm > 0.5 for _, norm in history.undisturbed)


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_a_layout_loaded_it_saves_bit_for_bit(stored, name):
    assert stored[name] == []


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_goes_on_from_two_others_checkpoints(history, name):
    acts = []
    for source in SOURCES[name]:
        acts += [["load", history.pass_on(source)], ["train", HANDED_OVER + 1, LAST]]
    _, one, _, other = history.live(LAYOUTS[name], acts)
    for curve in (one, other):
        close(curve, history.undisturbed[HANDED_OVER:])
    close(history.curves[SOURCES[name][0]], history.undisturbed[SAVED:HANDED_OVER])


@pytest.mark.parametrize("name", ["cp2", "dp2"])
def test_stored_weights_are_those_of_the_last_update(rank_server, history, name):
    # Where weights are gathered while the next step computes, they lag behind their masters until then.
    (inside,) = rank_server.run(1, f"{PROGRAMS}:look_inside", folder=history.pass_on(name))
    assert inside["stale"] == []


@pytest.mark.parametrize("name", ["tp4", pytest.param("tp2 pp2", marks=pytest.mark.slow)])
def test_bfloat16_weights_move_with_their_fp32_states(rank_server, tmp_path, name):
    history = History(rank_server, tmp_path, "bf16")
    trained = history.pass_on(name)
    (found,) = rank_server.run(
        1, f"{PROGRAMS}:compare", origin=history.path("origin"), folders=[history.path(name, "copy")]
    )
    assert list(found.values()) == [[]]
    (inside,) = rank_server.run(1, f"{PROGRAMS}:look_inside", folder=trained)
    assert inside["stale"] == []
    assert inside["tensors"]["blocks.0.text.qkv.bias"] == ["torch.bfloat16", 3 * 96]
    assert inside["tensors"]["optimizer.state.param.blocks.0.text.qkv.bias"] == ["torch.float32", 3 * 96]
    _, curve = history.live((1, {}), [["load", trained], ["train", HANDED_OVER + 1, LAST]])
    # Weights of 8 bits: sums over other ranks round otherwise.
    assert [loss for loss, _ in curve] == pytest.approx([loss for loss, _ in history.undisturbed[4:]], rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDER)
def test_wider_layouts_keep_every_bit_and_hand_over(rank_server, history, name):
    trained = history.pass_on(name)
    (found,) = rank_server.run(
        1, f"{PROGRAMS}:compare", origin=history.path("origin"), folders=[history.path(name, "copy")]
    )
    assert list(found.values()) == [[]]
    close(history.curves[name], history.undisturbed[SAVED:HANDED_OVER])
    for target in ("alone", "tp4"):
        _, curve = history.live(LAYOUTS[target], [["load", trained], ["train", HANDED_OVER + 1, LAST]])
        close(curve, history.undisturbed[HANDED_OVER:])
