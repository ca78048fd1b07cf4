"""How fast a device does each kind of work: published peaks times shares of them, each measured or assumed.

A figure of measured.py stands where there is one; another device takes the H100's share of its own peak, or what is
written here.
"""

from dataclasses import dataclass

from ..config import Precision
from ..hardware import Hardware
from .measured import MEASURED, Measured

ASSUMED = {
    "products": 0.70,
    "attention_forward": 0.50,
    "attention_backward": 0.35,
    "attention_backward_unrepeatable": 0.35,
    "memory": 0.85,
    "optimizer_memory": 0.85,
}
"""Shares where nothing was measured and no device of the same chip was: ours, near those of the H100."""

SAME_CHIP = {"h200-141g": "h100-80g"}
"""Its shares are taken to be the other's."""

LINK_SHARE = 0.75
"""Of a link's published rate that large collectives reach."""
CPU_MEMORY_GBS, CPU_LINK_GBS = 10.0, 1.0
"""Of one process among several, and between processes of one machine by gloo."""
READING_GBS = 1.0
"""Samples from the file system to the device, of each rank; the loop waits for them."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What one rank does in a second: 10^12 operations, 10^9 bytes; and what each thing costs at least."""

    products: float
    attention_forward: float
    attention_backward: float
    memory: float
    optimizer_memory: float
    link: float
    network: float
    reading: float = READING_GBS
    message_seconds: float
    launch_seconds: float
    assumptions: tuple[str, ...] = ()
    """Every figure above, measured or assumed, in words."""


def rates_of(hardware: Hardware, precision: Precision, *, peak_tflops: float = 0.0, repeatable: bool = True) -> Rates:
    """`peak_tflops`: instead of the table's peak, where it is not 0; `repeatable`: whether backends repeat their bits.

    Raises ValueError where no peak is known at this precision and none is given.
    """
    if hardware.is_host:
        return _cpu(hardware, peak_tflops)
    peak = peak_tflops or hardware.peak_tflops.get(precision, 0.0)
    if not peak:
        raise ValueError(f"no peak of {hardware.key} is known at {precision}: set --trainer.peak-tflops")
    shares = {name: _share(hardware, name) for name in ASSUMED}
    backward = "attention_backward" if repeatable else "attention_backward_unrepeatable"
    used = {name: shares[name] for name in shares if not name.startswith("attention_backward") or name == backward}
    whence = "trainer.peak_tflops" if peak_tflops else hardware.source
    return Rates(
        products=peak * shares["products"][0],
        attention_forward=peak * shares["attention_forward"][0],
        attention_backward=peak * shares[backward][0],
        memory=hardware.memory_gbs * shares["memory"][0],
        optimizer_memory=hardware.memory_gbs * shares["optimizer_memory"][0],
        link=hardware.link_gbs * LINK_SHARE,
        network=hardware.network_gbs * LINK_SHARE,
        message_seconds=hardware.message_seconds,
        launch_seconds=hardware.launch_seconds,
        assumptions=(
            f"peak {peak:g} TFLOP/s at {precision}: {whence}",
            f"memory {hardware.memory_gib:g} GiB, node of {hardware.devices_per_node}, "
            f"network {hardware.network_gbs:g} GB/s a device: {hardware.node_source}",
            *(f"{name.replace('_', ' ')} at {share:.3f} of the peak: {why}" for name, (share, why) in used.items()),
            *_transfers(hardware),
        ),
    )


def _cpu(hardware: Hardware, peak_tflops: float) -> Rates:
    (found,) = (each for each in MEASURED if each.hardware == hardware.key)
    tflops = peak_tflops or found.value
    whence = "assumed: trainer.peak_tflops" if peak_tflops else f"measured: {_where(found)}, two threads a process"
    return Rates(
        products=tflops, attention_forward=tflops, attention_backward=tflops, memory=CPU_MEMORY_GBS,
        optimizer_memory=CPU_MEMORY_GBS, link=CPU_LINK_GBS, network=CPU_LINK_GBS,
        message_seconds=hardware.message_seconds, launch_seconds=hardware.launch_seconds,
        assumptions=(
            f"products and attention at {tflops:.3f} TFLOP/s a process: {whence}",
            f"memory at {CPU_MEMORY_GBS:g} GB/s and messages at {CPU_LINK_GBS:g} GB/s a process: assumed",
            "no limit of memory is known: the machine's own is shared by its processes",
        ),
    )  # fmt: skip


def _share(hardware: Hardware, name: str) -> tuple[float, str]:
    for measured in MEASURED:
        if measured.figure == name and measured.hardware == hardware.key:
            return measured.value, f"measured: {_where(measured)}"
        if measured.figure == name and measured.hardware == SAME_CHIP.get(hardware.key):
            return measured.value, f"assumed: {measured.hardware}'s, the same chip, {_where(measured)}"
    return ASSUMED[name], "assumed"


def _where(measured: Measured) -> str:
    return f"{measured.file}, {measured.date}"


def _transfers(hardware: Hardware) -> tuple[str, ...]:
    microseconds = 1e6 * hardware.message_seconds
    return (
        f"collectives at {LINK_SHARE:g} of {hardware.link_gbs:g} GB/s inside a node and {hardware.network_gbs:g} "
        f"between nodes, each after {microseconds:g} microseconds: assumed",
        f"samples read at {READING_GBS:g} GB/s a rank, while the loop waits: assumed",
    )
