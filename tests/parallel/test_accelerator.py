"""The list of replaced names: pinned to a version, asserted name by name, applied once."""

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from contentv.parallel import accelerator, megatron
from contentv.parallel.accelerator import CPU_REPLACEMENTS, NPU_REPLACEMENTS, HostGenerators, Replacement

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


@pytest.mark.parametrize("replacements", [CPU_REPLACEMENTS, NPU_REPLACEMENTS], ids=["cpu", "npu"])
def test_the_list_holds_what_megatron_says_and_nothing_else(replacements):
    source = "\n".join(
        path.read_text(encoding="utf-8") for path in Path(find_spec("megatron.core").origin).parent.rglob("*.py")
    )
    names = [f"{replacement.owner.__name__}.{replacement.name}" for replacement in replacements]
    assert len(set(names)) == len(names)
    for replacement in replacements:
        assert replacement.name in source, f"megatron-core never says {replacement.name}: drop it from the list"


def test_an_npu_answers_to_the_cpus_names_but_for_what_gloo_alone_needs():
    names = [{f"{each.owner.__name__}.{each.name}" for each in some} for some in (CPU_REPLACEMENTS, NPU_REPLACEMENTS)]
    assert names[0] - names[1] == {
        "torch.distributed.reduce_scatter_tensor",
        "torch.distributed.all_gather_into_tensor",
    }
    assert names[1] < names[0]


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
    monkeypatch.delenv(accelerator.NPU_VARIABLE, raising=False)
    assert accelerator.present() == expected


@pytest.mark.parametrize(
    "wish, told", [("tpu", "CONTENTV_DEVICE is 'tpu'; cpu, cuda and npu"), ("cuda", "sees no CUDA device")]
)
def test_a_wish_that_cannot_be_met_is_refused(monkeypatch, wish, told):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv(accelerator.DEVICE_VARIABLE, wish)
    with pytest.raises(ValueError, match=told):
        accelerator.present()


@pytest.mark.parametrize(
    "device, switch, told",
    [
        ("cpu", "1", "CONTENTV_DEVICE is cpu and USE_ASCEND_NPU is 1: unset one of them"),
        ("cuda", "1", "CONTENTV_DEVICE is cuda and USE_ASCEND_NPU is 1"),
        ("npu", "0", "CONTENTV_DEVICE is npu and USE_ASCEND_NPU is 0"),
        ("", "yes", "USE_ASCEND_NPU is 'yes'; 1 selects npu, 0 does not"),
        ("", "1", "USE_ASCEND_NPU asks for an NPU, but torch_npu is not installed: pip install torch_npu=="),
        ("npu", "", "CONTENTV_DEVICE asks for an NPU, but torch_npu is not installed"),
    ],
)
def test_what_asks_for_an_npu_agrees_and_can_be_had(monkeypatch, device, switch, told):
    monkeypatch.setenv(accelerator.DEVICE_VARIABLE, device)
    monkeypatch.setenv(accelerator.NPU_VARIABLE, switch)
    monkeypatch.setattr(accelerator.importlib.metadata, "version", not_installed)
    with pytest.raises(ValueError, match=told):
        accelerator.present()


def not_installed(name: str):
    raise accelerator.importlib.metadata.PackageNotFoundError(name)


@pytest.mark.parametrize("found", ["2.12.0", "2.10.0", "2.1.0.post17"])
def test_a_torch_npu_of_another_number_is_refused_before_it_is_imported(monkeypatch, found):
    monkeypatch.setenv(accelerator.DEVICE_VARIABLE, "")
    monkeypatch.setenv(accelerator.NPU_VARIABLE, "1")
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    monkeypatch.setattr(accelerator.importlib.metadata, "version", lambda _name: found)
    monkeypatch.setattr(accelerator.importlib, "import_module", lambda _name: pytest.fail("imported"))
    with pytest.raises(ValueError, match=f"torch_npu {found} does not go with torch 2.13.0.*torch_npu==2.13.0"):
        accelerator.present()


def test_a_torch_npu_without_cann_is_told(monkeypatch):
    def fails(name):
        raise ImportError("libhccl.so: cannot open shared object file")

    monkeypatch.setenv(accelerator.DEVICE_VARIABLE, "npu")
    monkeypatch.setattr(accelerator.importlib.metadata, "version", lambda _name: torch.__version__.split("+")[0])
    monkeypatch.setattr(accelerator.importlib, "import_module", fails)
    with pytest.raises(ValueError, match=r"does not load \(libhccl.so: .*\): source CANN's set_env.sh first"):
        accelerator.present()


@pytest.mark.parametrize(
    "count, shown, local_rank, index", [(8, "", 3, 3), (1, "5", 3, 0), (2, "4,5", 1, 1), (1, "", 0, 0)]
)
def test_a_rank_takes_the_device_of_its_number_among_those_it_sees(monkeypatch, count, shown, local_rank, index):
    monkeypatch.setattr(accelerator, "interface", lambda _kind: SimpleNamespace(device_count=lambda: count))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    assert accelerator.device_of("cuda", local_rank) == torch.device("cuda", index)


@pytest.mark.parametrize("count, shown", [(2, "0,1"), (1, ""), (1, "0-0")])
def test_more_ranks_than_devices_are_refused(monkeypatch, count, shown):
    monkeypatch.setattr(accelerator, "interface", lambda _kind: SimpleNamespace(device_count=lambda: count))
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", shown)
    told = f"number 2 on its node, where {count} devices of npu show .ASCEND_RT_VISIBLE_DEVICES={shown}"
    with pytest.raises(ValueError, match=told):
        accelerator.device_of("npu", 2)


def test_the_message_library_waits_a_little_longer_than_the_watch_and_what_is_set_stays(monkeypatch):
    def limits(seconds):
        told = accelerator.hccl_environment(seconds)
        assert told.pop("HCCL_DETERMINISTIC") == "true"
        return told

    assert limits(30.0) == {"HCCL_CONNECT_TIMEOUT": "120", "HCCL_EXEC_TIMEOUT": "136"}
    assert limits(86400.0) == {"HCCL_CONNECT_TIMEOUT": "7200", "HCCL_EXEC_TIMEOUT": "86496"}
    own = {"HCCL_EXEC_TIMEOUT": "7", "HCCL_DETERMINISTIC": "false"}
    monkeypatch.setattr(accelerator.os, "environ", environment := dict(own))
    accelerator.set_up_messages("cpu", 30.0)
    assert environment == own
    accelerator.set_up_messages("npu", 30.0)
    assert environment == own | {"HCCL_CONNECT_TIMEOUT": "120"}


def test_what_others_replaced_for_npus_stays_and_that_is_said(capsys):
    scope = {"__name__": "torch_npu.contrib.transfer_to_npu"}
    exec("def theirs(): return 'theirs'", scope)
    scope["theirs"].__module__ = "torch.cuda"  # as functools.wraps leaves it
    owner = SimpleNamespace(taken=scope["theirs"], free=lambda: "torch's")
    wanted = tuple(Replacement(owner, name, "a test", lambda _: lambda: "ours") for name in ("taken", "free"))
    left = accelerator._left_to_us(wanted)
    assert [each.name for each in left] == ["free"]
    assert "transfer_to_npu or MindSpeed is active: their replacements stay (taken)" in capsys.readouterr().err
    assert accelerator._left_to_us(left) == left and not capsys.readouterr().err
