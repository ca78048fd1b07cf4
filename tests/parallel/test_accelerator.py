"""The list of replaced names: pinned to a version, asserted name by name, applied once."""

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from contentv.parallel import accelerator, megatron
from contentv.parallel.accelerator import CPU_REPLACEMENTS, HostGenerators, Replacement

ON_CPU = pytest.mark.skipif(
    not isinstance(torch.cuda.default_generators, HostGenerators), reason="nothing is replaced on this accelerator"
)


@pytest.fixture
def unprepared(monkeypatch):
    """As if nothing had been replaced yet."""
    monkeypatch.setattr(torch.cuda, "default_generators", ())


def standing() -> list[object]:
    return [getattr(replacement.owner, replacement.name) for replacement in CPU_REPLACEMENTS]


def test_another_megatron_is_refused(monkeypatch):
    monkeypatch.setattr(accelerator.importlib.metadata, "version", lambda _name: "0.17.0")
    with pytest.raises(ValueError, match=r"megatron-core 0\.17\.0 is installed.*pip install megatron-core==0\.16\.1"):
        accelerator.prepare("cpu")


def test_the_pinned_megatron_is_the_installed_one():
    assert megatron.dist_checkpointing.__name__ == "megatron.core.dist_checkpointing"
    assert accelerator.importlib.metadata.version("megatron-core") == accelerator.MEGATRON_VERSION


def test_a_name_that_torch_lost_is_refused(monkeypatch, unprepared):
    lost = Replacement(SimpleNamespace(), "vanished", "a test needs it", lambda _: None)
    monkeypatch.setattr(accelerator, "CPU_REPLACEMENTS", (lost,))
    with pytest.raises(AssertionError, match="torch lost vanished: a test needs it"):
        accelerator.prepare("cpu")
    assert not hasattr(lost.owner, "vanished")


def test_a_list_that_leaves_cuda_standing_is_refused(monkeypatch, unprepared):
    monkeypatch.setattr(accelerator, "CPU_REPLACEMENTS", ())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with pytest.raises(AssertionError):
        accelerator.prepare("cpu")


def test_nothing_is_replaced_on_cuda(monkeypatch, unprepared):
    poisoned = Replacement(SimpleNamespace(name=1), "name", "never", lambda _: pytest.fail("replaced"))
    monkeypatch.setattr(accelerator, "CPU_REPLACEMENTS", (poisoned,))
    accelerator.prepare("cuda")


@ON_CPU
def test_preparing_again_changes_nothing():
    before = standing()
    accelerator.prepare("cpu")
    assert all(one is other for one, other in zip(before, standing(), strict=True))


@ON_CPU
def test_every_replacement_is_an_object_of_its_own():
    """torch._dynamo keeps a table by object and refuses one that stands under two names."""
    functions = [value for value in standing() if callable(value)]
    assert len({id(value) for value in functions}) == len(functions)


def test_the_list_holds_what_megatron_says_and_nothing_else():
    source = "\n".join(
        path.read_text(encoding="utf-8") for path in Path(find_spec("megatron.core").origin).parent.rglob("*.py")
    )
    names = [f"{replacement.owner.__name__}.{replacement.name}" for replacement in CPU_REPLACEMENTS]
    assert len(set(names)) == len(names)
    for replacement in CPU_REPLACEMENTS:
        assert replacement.name in source, f"megatron-core never says {replacement.name}: drop it from the list"


@ON_CPU
def test_cuda_names_resolve_to_the_cpu_and_others_stay():
    assert torch.zeros(2, device="cuda:3").device == torch.device("cpu")
    assert torch.tensor([1.5], device=torch.device("cuda")).tolist() == [1.5]
    assert torch.empty(2, 3, device="meta").device.type == "meta"
    assert torch.ones(2, dtype=torch.int32).dtype == torch.int32
    assert torch.zeros(1).type() == "torch.cuda.FloatTensor"
    assert torch.zeros(1).type(torch.float64).dtype == torch.float64
    tensor = torch.zeros(1)
    assert tensor.cuda() is tensor and torch.cuda.current_device() == torch.device("cpu")
    with torch.cuda.stream(torch.cuda.current_stream()):
        assert torch.cuda.Event(enable_timing=True).query()


@ON_CPU
def test_the_one_generator_is_saved_and_restored():
    state = torch.cuda.get_rng_state()
    first = torch.rand(3)
    torch.cuda.set_rng_state(state)
    assert torch.equal(torch.rand(3), first)
    torch.cuda.manual_seed(5)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(5)))


@pytest.mark.parametrize(
    "wish, available, expected", [("", False, "cpu"), ("", True, "cuda"), ("cpu", True, "cpu"), ("cuda", True, "cuda")]
)
def test_the_present_accelerator_is_the_wished_one_or_the_one_that_works(monkeypatch, wish, available, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setenv(accelerator.DEVICE_VARIABLE, wish)
    assert accelerator.present() == expected


@pytest.mark.parametrize(
    "wish, told", [("tpu", "CONTENTV_DEVICE is 'tpu'; cpu, cuda and npu"), ("cuda", "sees no CUDA device")]
)
def test_a_wish_that_cannot_be_met_is_refused(monkeypatch, wish, told):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv(accelerator.DEVICE_VARIABLE, wish)
    with pytest.raises(ValueError, match=told):
        accelerator.present()
