"""The registry's choices: wishes met or refused in words, `auto` by rank, nothing in silence."""

from dataclasses import FrozenInstanceError

import pytest
import torch

from contentv.kernels.backend import Backend
from contentv.kernels.config import KernelConfig
from contentv.kernels.ranks import DEVICE_TYPES, OPERATIONS, RANKS
from contentv.kernels.registry import TABLE, choose, choose_like, tabulate
from contentv.parallel.accelerator import present


def fake(name, devices=("cpu",), reason=None, op="mlp_gelu"):
    return Backend(op=op, name=name, devices=devices, load=lambda: name, refusal=lambda: reason)


@pytest.fixture
def world():
    """The real table with more backends of mlp_gelu: one faster, one refusing, one for another device."""
    backends = (
        *(backend for backend in TABLE.values() if backend.op != "mlp_gelu" or backend.name == "reference"),
        fake("cpu_native"),
        fake("vendor", reason="the vendor's library is not installed"),
        fake("gpu_triton", devices=("cuda",)),
    )
    order = ("vendor", "gpu_triton", "cpu_native", "reference")
    ranks = {device: {**RANKS[device], "mlp_gelu": order} for device in DEVICE_TYPES}
    return {"table": tabulate(backends), "ranks": ranks}


@pytest.mark.parametrize("device", DEVICE_TYPES)
def test_the_reference_can_be_wished_for_everywhere(device):
    kernels = choose(device, "reference")
    assert kernels.choices() == dict.fromkeys(OPERATIONS, "reference")
    assert kernels.device == device
    assert [str(row).split(" (")[0] for row in kernels.report()] == [f"{op} -> reference" for op in OPERATIONS]


def test_the_set_holds_working_functions():
    hidden, bias = torch.randn(3, 2, 5), torch.randn(5)
    expected = torch.nn.functional.gelu(hidden + bias, approximate="tanh")
    torch.testing.assert_close(choose("cpu").mlp_gelu(hidden, bias), expected)


def test_auto_takes_the_best_rank_that_can_run_and_says_why_not_the_others(world):
    kernels = choose("cpu", **world)
    assert kernels.mlp_gelu == "cpu_native"
    row = next(row for row in kernels.report() if row.op == "mlp_gelu")
    assert row.backend == "cpu_native"
    assert dict(row.others) == {
        "reference": "ranked below cpu_native",
        "vendor": "the vendor's library is not installed",
        "gpu_triton": "runs on cuda, not on cpu",
    }
    assert "vendor: the vendor's library is not installed" in str(row)


def test_a_named_wish_is_met(world):
    kernels = choose("cpu", {"mlp_gelu": "reference"}, **world)
    assert kernels.choices()["mlp_gelu"] == "reference"
    row = next(row for row in kernels.report() if row.op == "mlp_gelu")
    assert dict(row.others)["cpu_native"] == "reference was wished for"


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"mlp_gelu": "vendor"}, ["mlp_gelu", "vendor", "not installed", "reference", "cpu_native"]),
        ({"mlp_gelu": "gpu_triton"}, ["gpu_triton", "runs on cuda, not on cpu", "cpu_native"]),
        ({"mlp_gelu": "unheard_of"}, ["unheard_of", "reference", "cpu_native"]),
        ({"mlp_relu": "reference"}, ["mlp_relu", "mlp_gelu"]),
        ("gpu_triton", ["joint_attention", "gpu_triton", "runs on cuda, not on cpu", "reference"]),
    ],
)
def test_a_wish_that_cannot_be_met_is_refused(world, wish, words):
    with pytest.raises(ValueError) as refusal:
        choose("cpu", wish, **world)
    assert all(word in str(refusal.value) for word in words), str(refusal.value)


def test_an_operation_nobody_can_run_is_refused():
    table = tabulate(tuple(each for each in TABLE.values() if each.op != "adamw") + (fake("vendor", op="adamw"),))
    with pytest.raises(ValueError, match="adamw.*vendor: has no rank"):
        choose("cpu", table=table)


def test_an_unknown_device_is_refused():
    with pytest.raises(ValueError, match="'tpu'.*cpu, cuda, npu"):
        choose("tpu")


def test_a_resume_asks_for_the_same_kernels(world):
    first = choose("cpu", **world)
    again = choose("cpu", first.choices(), **world)
    assert again.choices() == first.choices() and again.mlp_gelu == first.mlp_gelu
    gone = tabulate(tuple(each for each in world["table"].values() if each.name != "cpu_native"))
    with pytest.raises(ValueError, match="cpu_native"):
        choose("cpu", first.choices(), table=gone)  # refused, not replaced


def test_config_wishes_reach_the_choice():
    wishes = KernelConfig(backend="reference", wish=("adamw=auto",)).wishes()
    expected = dict.fromkeys(OPERATIONS, "reference") | {"adamw": choose("cpu").choices()["adamw"]}
    assert choose("cpu", wishes).choices() == expected


def test_only_the_chosen_backend_is_loaded():
    def explode():
        raise AssertionError("loaded")

    silent = Backend(op="mlp_gelu", name="vendor", devices=("cpu",), load=explode)
    choose("cpu", table=tabulate((*TABLE.values(), silent)))


def test_table_and_set_are_frozen():
    with pytest.raises(TypeError):
        TABLE["adamw", "vendor"] = fake("vendor")
    with pytest.raises(FrozenInstanceError):
        choose("cpu").mlp_gelu = None
    with pytest.raises(AssertionError, match="share a name"):
        tabulate((fake("vendor"), fake("vendor")))


def test_the_present_device_has_kernels():
    assert choose(present()).device == present()


def test_another_machine_keeps_what_it_can_run():
    """A run trained on a GPU is sampled on a laptop: by its kernels where they run, by the best one elsewhere."""
    former = choose("cpu", "reference").choices() | {"joint_attention": "gpu_triton"}
    kernels = choose_like("cpu", former).choices()
    assert kernels == former | {"joint_attention": choose("cpu").choices()["joint_attention"]}
    with pytest.raises(ValueError, match="unheard_of"):
        choose_like("cpu", former | {"mlp_gelu": "unheard_of"})


def test_auto_takes_what_repeats_its_bits_unless_told_otherwise():
    """The fastest backend adds with atomics."""
    fast = Backend(op="mlp_gelu", name="fast", devices=("cpu",), load=lambda: "fast", repeats=False)
    table = tabulate((*TABLE.values(), fast))
    ranks = RANKS | {"cpu": {**RANKS["cpu"], "mlp_gelu": ("fast", "reference")}}
    careful = choose("cpu", table=table, ranks=ranks)
    assert careful.choices()["mlp_gelu"] == "reference"
    assert "fast: does not repeat its bits" in str(next(row for row in careful.report() if row.op == "mlp_gelu"))
    for wish, repeatable in (("auto", False), ({"mlp_gelu": "fast"}, True)):
        assert choose("cpu", wish, repeatable=repeatable, table=table, ranks=ranks).mlp_gelu == "fast"


def test_every_default_of_the_committed_ranks_repeats_its_bits():
    for device in DEVICE_TYPES:
        for op in OPERATIONS:
            first = next(name for name in RANKS[device][op] if TABLE[op, name].repeats)
            assert first == RANKS[device][op][0] or op == "joint_attention", (device, op)
