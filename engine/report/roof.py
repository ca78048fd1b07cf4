"""What the slowest operations could take at best: the least they move and compute, under the device's roof.

The least is what a trace tells: every tensor that came in read once, and the multiplications of products and attention.
What comes out is not in a trace, so shares of the roof are understated rather than flattered. Imports no torch.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from ..config import Precision
from ..hardware import hardware_named, peak_of
from .trace import Operation

BYTES = {
    "float": 4,
    "c10::BFloat16": 2,
    "c10::Half": 2,
    "double": 8,
    "long int": 8,
    "int": 4,
    "bool": 1,
    "signed char": 1,
}


@dataclass(frozen=True, kw_only=True)
class DeviceRoof:
    """What the device can do at best, and by whose word."""

    copy_gbs: float
    product_tflops: float
    source: str

    def floor_seconds(self, moved: float, operations: float) -> float:
        return max(moved / (1e9 * self.copy_gbs), operations / (1e12 * self.product_tflops))


@dataclass(frozen=True, kw_only=True)
class Judged:
    """An operation beside its floor."""

    operation: Operation
    milliseconds: float
    """Of one call, on average."""
    gbytes: float | None
    """The least one call reads; None: the trace does not tell."""
    gflops: float
    share: float | None
    """Floor over time; None where no roof or no size is known."""


def roof_of(device: str, precision: Precision, configured_tflops: float) -> DeviceRoof | None:
    """By the table of engine/hardware.py; None for a device whose memory it does not know."""
    hardware = hardware_named(device)
    if hardware is None or not hardware.memory_gbs:
        return None
    peak = peak_of(device, precision, configured_tflops)
    return DeviceRoof(copy_gbs=hardware.memory_gbs, product_tflops=peak.tflops, source=hardware.name)


def judge(operations: Sequence[Operation], roof: DeviceRoof | None) -> list[Judged]:
    return [_judge(operation, roof) for operation in operations]


def _judge(operation: Operation, roof: DeviceRoof | None) -> Judged:
    shapes, kinds = json.loads(operation.shapes)
    seconds = operation.seconds / operation.calls
    moved = None if "TensorList" in kinds else _bytes(shapes, kinds)
    flops = multiplications(operation.name, shapes)
    floor = None if roof is None or moved is None else roof.floor_seconds(moved, flops)
    return Judged(
        operation=operation,
        milliseconds=1e3 * seconds,
        gbytes=None if moved is None else moved / 1e9,
        gflops=flops / 1e9,
        share=None if floor is None else floor / seconds,
    )


def multiplications(name: str, shapes: list) -> float:
    """Floating-point operations (a multiply and its add are two) of products and attention; 0 for the rest."""
    tensors = [shape for shape in shapes if shape]
    if "attention" in name and len(tensors) > 2:
        backward = name.endswith("_backward")
        query, key = (tensors[1], tensors[2]) if backward else (tensors[0], tensors[1])
        product = 2.0 * prod(query) * key[-2]
        return product * (4 if backward else 2)
    if name.startswith("contentv::matrix_product") or name in ("aten::mm", "aten::bmm"):
        left, right = tensors[0], tensors[1]
        return 2.0 * prod(left) * right[-1]
    if name == "aten::addmm":
        return 2.0 * prod(tensors[1]) * tensors[2][-1]
    if name == "aten::linear":
        return 2.0 * prod(tensors[0]) * tensors[1][0]
    return 0.0


def _bytes(shapes: list, kinds: list[str]) -> float:
    return float(
        sum(prod(shape) * BYTES[kind] for shape, kind in zip(shapes, kinds, strict=False) if kind in BYTES and shape)
    )
