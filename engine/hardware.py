"""What devices can do at best, by their names, and how much of it a training step used. Imports no torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..model.cost import StepOperations
from .config import Precision


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One kind of device. A part of one (MIG) has another name, and no peak here."""

    name: str
    pattern: str
    """Regular expression of the whole name its driver reports."""
    peak_tflops: Mapping[Precision, float]
    """Dense matrix products, 10^12 operations a second; fp32 is true fp32, torch's default, not TF32."""
    memory_gbs: float
    """10^9 bytes a second of its memory, read or written."""
    link_gbs: float
    """10^9 bytes a second that it sends to the others of its node, all links together; 0 where none is published."""
    source: str


HARDWARE = (
    Hardware(
        name="H100 SXM",
        pattern=r"NVIDIA H100 80GB HBM3",
        peak_tflops={"bf16": 989.4, "fp32": 66.9},
        memory_gbs=3350.0,
        link_gbs=450.0,
        source="NVIDIA H100 Tensor Core GPU Architecture white paper, SXM5, without sparsity",
    ),
    Hardware(
        name="H200",
        pattern=r"NVIDIA H200",
        peak_tflops={"bf16": 989.4, "fp32": 66.9},
        memory_gbs=4800.0,
        link_gbs=450.0,
        source="NVIDIA H200 datasheet, SXM: the H100's chip, without sparsity",
    ),
    Hardware(
        name="A100",
        pattern=r"(NVIDIA )?A100(-SXM4|-PCIE|-SXM)-(40|80)GB|NVIDIA A100 80GB PCIe",
        peak_tflops={"bf16": 312.0, "fp32": 19.5},
        memory_gbs=1555.0,  # 40 GB; 1935 to 2039 with 80
        link_gbs=300.0,
        source="NVIDIA A100 Tensor Core GPU datasheet, without sparsity",
    ),
    Hardware(
        name="Ascend 910B, 64 GB",
        pattern=r"Ascend ?910B[1-3]?",
        peak_tflops={"bf16": 376.0, "fp32": 94.0},
        memory_gbs=1600.0,
        link_gbs=196.0,
        source="sources conflict, 280 to 376 TFLOP/s at 16 bits, by model and by author; taken is the largest, half of "
        "the 752 of a 910C of two such dies (CloudMatrix384, arXiv 2506.12708), so that no share is flattered; memory "
        "and link are a die's in the same paper; fp32 is a quarter of the peak, as cube products are; set "
        "trainer.peak_tflops to your own",
    ),
    Hardware(
        name="CPU",
        pattern="cpu",
        peak_tflops={},
        memory_gbs=0.0,
        link_gbs=0.0,
        source="no figure is published for a CPU as such",
    ),
)


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
    for hardware in HARDWARE:
        if re.fullmatch(hardware.pattern, device_name):
            return Peak(tflops=hardware.peak_tflops.get(precision), reason=f"{hardware.name}: {hardware.source}")
    return Peak(tflops=None, reason=f"{device_name} is not in the table")
