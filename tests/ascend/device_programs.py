"""What a rank on the simulated NPU sees of its device, of megatron's names for it, and of itself."""

import sys
from pathlib import Path

import torch

from contentv.engine.doctor import can_train, examine
from contentv.kernels import device as devices
from contentv.parallel import accelerator
from contentv.parallel.mesh import ParallelConfig, build_mesh, leave_world

NPU = torch.device("npu", 0)


def names(*, folder: str) -> dict:
    """Asserts what must hold; tells what the doctor found."""
    for check in (_cuda_names, _generators, _streams_and_events, _memory, _autocast, lambda: _files(Path(folder))):
        check()
    findings = list(examine(Path(folder)))
    return {"can_train": can_train(findings), "found": {each.name: each.found for each in findings}}


def _cuda_names() -> None:
    """What megatron says resolves to the NPU; what nobody replaced stays."""
    assert accelerator.present() == "npu"
    assert torch.cuda.current_device() == NPU and torch.cuda.device_count() == 2
    for made in (torch.zeros(2, device="cuda"), torch.ones(2, device="cuda:0"), torch.tensor([1.0], device="cuda")):
        assert made.device == NPU and made.type() == "torch.cuda.FloatTensor"
    assert torch.empty(2, device=torch.device("cuda", 1)).device == torch.device("npu", 1)
    assert torch.zeros(2).type() == "torch.FloatTensor", "the host's tensors keep their name"
    assert torch.zeros(2, device=NPU).bfloat16().type() == "torch.cuda.BFloat16Tensor"
    assert torch.zeros(2).cuda().device == NPU
    with torch.device("meta"):
        assert torch.zeros(1).is_meta


def _generators() -> None:
    torch.manual_seed(3)
    host = torch.get_rng_state()
    torch.cuda.manual_seed(5)
    state = torch.cuda.get_rng_state()
    first = torch.rand(4, device=NPU)
    torch.cuda.set_rng_state(state)
    assert torch.equal(torch.rand(4, device=NPU), first)
    torch.cuda.default_generators[torch.cuda.current_device()].set_state(state)
    assert torch.equal(torch.rand(4, device=NPU), first)
    assert torch.equal(torch.get_rng_state(), host), "the NPU draws from a generator of its own"


def _streams_and_events() -> None:
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        assert torch.cuda.current_stream() == side
    assert torch.cuda.current_stream() == torch.cuda.default_stream() != side
    side.wait_stream(torch.cuda.current_stream())
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    assert event.query() and isinstance(side, torch.npu.Stream)
    torch.cuda.synchronize()
    left = torch.rand(64, 64, device=NPU)
    seconds = devices.seconds_between([lambda: left @ left] * 3, NPU, pause=1.0)
    assert len(seconds) == 3 and all(0 < each < 1 for each in seconds)


def _memory() -> None:
    torch.npu.reset_peak_memory_stats()
    before = devices.peak_memory_mib(NPU)
    held = torch.empty(2**20, device=NPU)
    del held
    assert devices.peak_memory_mib(NPU) == before + 4
    sent = devices.sent_to(NPU, torch.arange(5))
    assert sent.device == NPU and sent.tolist() == [0, 1, 2, 3, 4]
    assert devices.is_accelerator(NPU) and devices.name_of(NPU).startswith("Ascend910B3")
    devices.wait_for(NPU)
    devices.choose(torch.device("npu", 1))
    assert torch.zeros(1, device="npu").device.index == 1
    with devices.chosen_for(torch.zeros(1, device=NPU)):
        assert torch.npu.current_device() == 0
    devices.choose(NPU)


def _autocast() -> None:
    left = torch.rand(4, 4, device=NPU)
    with torch.autocast("npu", dtype=torch.bfloat16):
        assert (left @ left).dtype == torch.bfloat16 and left.exp().dtype == torch.float32


def _files(folder: Path) -> None:
    kept = {"weight": torch.rand(3, device=NPU), "buffer": torch.ones(2)}
    torch.save(kept, folder / "kept.pt")
    again = torch.load(folder / "kept.pt", weights_only=True)
    assert again["weight"].device == NPU and torch.equal(again["weight"], kept["weight"])
    assert torch.load(folder / "kept.pt", map_location="cpu", weights_only=True)["weight"].device.type == "cpu"


def refusals() -> dict:
    """A collective on tensors of the host, and a sum in fp64, are what HCCL does not take."""
    mesh = build_mesh(ParallelConfig(context=2))
    told = {}
    for name, values in {"host": torch.ones(2), "fp64": torch.ones(2, dtype=torch.float64, device=mesh.device)}.items():
        try:
            torch.distributed.all_reduce(values)
        except RuntimeError as error:
            told[name] = str(error)
    summed = mesh.sum_of_parts(torch.ones(2, dtype=torch.float64, device=mesh.device))
    device = str(mesh.device)
    leave_world()
    return {"told": told, "sum": summed.tolist(), "device": device, "argv": len(sys.argv)}
