"""What devices can do at best, by their names, and how much of it a training step used. Imports no torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..model.cost import StepOperations
from .config import Precision
from .plain import nearest


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One kind of device. A part of one (MIG) has another name, and no peak here."""

    key: str
    """What the command line calls it."""
    name: str
    pattern: str
    """Regular expression of the whole name its driver reports."""
    peak_tflops: Mapping[Precision, float]
    """Dense matrix products, 10^12 operations a second; fp32 is true fp32, torch's default, not TF32."""
    memory_gbs: float
    """10^9 bytes a second of its memory, read or written."""
    link_gbs: float
    """10^9 bytes a second that it sends to the others of its node, all links together; 0 where none is published."""
    memory_gib: float
    """2^30 bytes of its memory; 0 where it has no size of its own."""
    devices_per_node: int
    network_gbs: float
    """10^9 bytes a second that it sends to other nodes, where each device has a port of its own."""
    source: str
    node_source: str
    launch_seconds: float = 5e-6
    """Least time of an operation, however small. Assumed, as is the next."""
    message_seconds: float = 20e-6
    """From the call of a collective to its first byte."""
    is_mesh: bool = False
    """Whether the devices of a node are joined two by two, without a switch: few of them have few of the links."""
    is_host: bool = False
    """Whether it is the machine's own processor, whose memory is everybody's."""


HARDWARE = (
    Hardware(
        key="h100-80g",
        name="H100 SXM",
        pattern=r"NVIDIA H100 80GB HBM3",
        peak_tflops={"bf16": 989.4, "fp32": 66.9},
        memory_gbs=3350.0,
        link_gbs=450.0,
        memory_gib=79.6,
        devices_per_node=8,
        network_gbs=50.0,
        source="NVIDIA H100 Tensor Core GPU Architecture white paper, SXM5, without sparsity",
        node_source="memory as nvidia-smi reports it (81,559 MiB); DGX H100 datasheet: 8 GPUs, 8 ports of 400 Gb/s",
    ),
    Hardware(
        key="h200-141g",
        name="H200",
        pattern=r"NVIDIA H200",
        peak_tflops={"bf16": 989.4, "fp32": 66.9},
        memory_gbs=4800.0,
        link_gbs=450.0,
        memory_gib=140.4,
        devices_per_node=8,
        network_gbs=50.0,
        source="NVIDIA H200 datasheet, SXM: the H100's chip, without sparsity",
        node_source="memory as nvidia-smi reports it (143,771 MiB); DGX H200 datasheet: 8 GPUs, 8 ports of 400 Gb/s",
    ),
    Hardware(
        key="a100-80g",
        name="A100 80 GB",
        pattern=r"(NVIDIA )?A100(-SXM4|-PCIE|-SXM)-80GB|NVIDIA A100 80GB PCIe",
        peak_tflops={"bf16": 312.0, "fp32": 19.5},
        memory_gbs=2039.0,  # SXM; 1935 on a PCIe card
        link_gbs=300.0,
        memory_gib=79.2,
        devices_per_node=8,
        network_gbs=25.0,
        source="NVIDIA A100 Tensor Core GPU datasheet, 80 GB, without sparsity",
        node_source="memory as torch reports it; DGX A100 datasheet: 8 GPUs, 8 ports of 200 Gb/s",
    ),
    Hardware(
        key="a100-40g",
        name="A100 40 GB",
        pattern=r"(NVIDIA )?A100(-SXM4|-PCIE|-SXM)-40GB",
        peak_tflops={"bf16": 312.0, "fp32": 19.5},
        memory_gbs=1555.0,
        link_gbs=300.0,
        memory_gib=39.4,
        devices_per_node=8,
        network_gbs=25.0,
        source="NVIDIA A100 Tensor Core GPU datasheet, 40 GB, without sparsity",
        node_source="memory as torch reports it; DGX A100 datasheet: 8 GPUs, 8 ports of 200 Gb/s",
    ),
    Hardware(
        key="ascend-910b-64g",
        name="Ascend 910B, 64 GB",
        pattern=r"Ascend ?910B[1-3]?",
        peak_tflops={"bf16": 376.0, "fp32": 94.0},
        memory_gbs=1600.0,
        link_gbs=196.0,
        memory_gib=64.0,
        devices_per_node=8,
        network_gbs=25.0,
        source="sources conflict, 280 to 376 TFLOP/s at 16 bits, by model and by author; taken is the largest, half of "
        "the 752 of a 910C of two such dies (CloudMatrix384, arXiv 2506.12708), so that no share is flattered; memory "
        "and link are a die's in the same paper; fp32 is a quarter of the peak, as cube products are; set "
        "trainer.peak_tflops to your own",
        node_source="Atlas 800T A2: 8 NPUs of 64 GB, 8 ports of 200 Gb/s (RoCE); a full mesh of links is assumed",
        is_mesh=True,
        launch_seconds=10e-6,
        message_seconds=30e-6,
    ),
    Hardware(
        key="cpu",
        name="CPU",
        pattern="cpu",
        peak_tflops={},
        memory_gbs=0.0,
        link_gbs=0.0,
        memory_gib=0.0,
        devices_per_node=1,
        network_gbs=0.0,
        source="no figure is published for a CPU as such",
        node_source="a machine's memory and network are its own",
        launch_seconds=80e-6,  # with autograd and Python, of steps that have nothing else (docs/measured.md)
        message_seconds=300e-6,
        is_host=True,
    ),
)


def hardware_of(key: str) -> Hardware:
    """The table's entry of that key. Raises ValueError where there is none."""
    for hardware in HARDWARE:
        if hardware.key == key:
            return hardware
    keys = [hardware.key for hardware in HARDWARE]
    raise ValueError(f"there is no hardware {key!r}; choose one of {', '.join(keys)}{nearest(key, keys)}")


def hardware_named(device_name: str) -> Hardware | None:
    """The table's entry of the device that its driver calls so; None where there is none."""
    return next((each for each in HARDWARE if re.fullmatch(each.pattern, device_name)), None)


@dataclass(frozen=True, kw_only=True)
class Peak:
    """What MFU and HFU are shares of."""

    tflops: float | None
    """Of one device; None: unknown."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class Utilisation:
    """How much of the devices a step used."""

    tflops: float
    """Achieved on each device, 10^12 operations a second: what the model asks for, recomputation left out."""
    mfu: float | None
    """That over the device's peak (model FLOPs utilisation); None where no peak is known."""
    hfu: float | None
    """The same with everything the device executed, recomputation included (hardware FLOPs utilisation)."""

    @classmethod
    def of(cls, operations: StepOperations, *, seconds: float, devices: int, peak: Peak) -> "Utilisation":
        """Of one step of the whole global batch, shared by `devices`."""
        per_operation = 1e-12 / (seconds * devices) if seconds > 0 else float("inf")
        tflops, executed = operations.model * per_operation, operations.hardware * per_operation
        if peak.tflops is None:
            return cls(tflops=tflops, mfu=None, hfu=None)
        return cls(tflops=tflops, mfu=tflops / peak.tflops, hfu=executed / peak.tflops)


def peak_of(device_name: str, precision: Precision, configured_tflops: float = 0.0) -> Peak:
    """The peak of a device: `configured_tflops` where it is not 0, else what the table says."""
    if configured_tflops:
        return Peak(tflops=configured_tflops, reason="trainer.peak_tflops")
    if hardware := hardware_named(device_name):
        return Peak(tflops=hardware.peak_tflops.get(precision), reason=f"{hardware.name}: {hardware.source}")
    return Peak(tflops=None, reason=f"{device_name} is not in the table")
