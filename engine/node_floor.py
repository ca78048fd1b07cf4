"""What a node's devices must do whatever the other nodes do: shares of what engine/hardware.py says of their kind.

Devices that are all slow alike (a power limit, a driver, links that fell back everywhere) look healthy beside each
other. A CPU and a device that is not in the table have no floor. Imports no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .hardware import Hardware, hardware_named

FIGURES = {"matmul_tflops": "TFLOP/s", "copy_gb_per_s": "GB/s", "all_reduce_gb_per_s": "GB/s"}
"""Of a rank (engine/node_speed.py). Higher is better; all-reduce among the ranks of one node."""
SHARE = 0.5
"""Of the published peak, by default: of an H100's were measured 0.80 (product) and 0.90 (copy)."""


@dataclass(frozen=True, kw_only=True)
class Floor:
    share: float = SHARE
    """Of the device's published figures; 0: no floor."""
    excludes: bool = False
    """Whether a node below it is bad; else it is a warning."""


def peaks(hardware: Hardware, ranks_here: int) -> dict[str, float]:
    """What each figure would be at the published peak; what is not published is left out."""
    found = {"matmul_tflops": hardware.peak_tflops.get("bf16", 0.0), "copy_gb_per_s": hardware.memory_gbs}
    if ranks_here > 1:
        link = hardware.link_gbs
        if hardware.is_mesh:  # a device has a link to each of the others, and those to absent ranks are idle
            link *= min(1.0, (ranks_here - 1) / (hardware.devices_per_node - 1))
        # Each rank sends 2 (n - 1) / n times the tensor's bytes: its part to be added up, then what was added up.
        found["all_reduce_gb_per_s"] = link * ranks_here / (2 * (ranks_here - 1))
    return {name: peak for name, peak in found.items() if peak}


def shortfalls(record: dict, floor: Floor) -> list[tuple[str, float, float, Hardware]]:
    """Figure, its value, the peak and the device, for each figure of a rank that is below the floor."""
    hardware = hardware_named(record.get("name") or "")
    if hardware is None or not floor.share:
        return []
    known = peaks(hardware, record.get("ranks_here") or 1)
    found = [(name, record.get(name), peak, hardware) for name, peak in known.items()]
    return [each for each in found if each[1] is not None and each[1] < floor.share * each[2]]


def below_floor(record: dict, floor: Floor) -> str | None:
    """Why a rank is too slow for its kind of device; None if it is not, or if nothing is known of its kind."""
    for name, value, peak, hardware in shortfalls(record, floor):
        return f"{name} is {_said(name, value, peak, hardware, floor)}"
    return None


def floor_lines(records: Sequence[dict], floor: Floor) -> list[str]:
    """One line for each figure in which some rank is below the floor: how many are, and the slowest of them."""
    worst: dict[str, list[tuple[float, float, Hardware, dict]]] = {}
    for record in records:
        for name, value, peak, hardware in shortfalls(record, floor):
            worst.setdefault(name, []).append((value, peak, hardware, record))
    lines = []
    for name, ranks in worst.items():
        value, peak, hardware, record = min(ranks, key=lambda each: each[0])
        lines.append(
            f"{name} is below the floor on {len(ranks)} of {len(records)} ranks; the slowest, rank {record['rank']} on "
            f"{record['node']}, does {_said(name, value, peak, hardware, floor)}"
        )
    return lines


def _said(name: str, value: float, peak: float, hardware: Hardware, floor: Floor) -> str:
    return (
        f"{value:.4g} {FIGURES[name]}, {value / peak:.0%} of the {peak:.4g} published of its kind, {hardware.name}; at "
        f"least {floor.share:.0%} is asked"
    )
