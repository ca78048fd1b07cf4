"""How fast a device does each kind of work, by how much of it one call does: published peaks times shares of them.

A figure of measured.py stands where there is one; another device takes the H100's share of its own peak, or what is
written here. What somebody measured on the device at hand (efficiencies.py) stands before all of that.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from ..config import Precision
from ..hardware import Hardware
from .efficiencies import IN_OPERATIONS, WAYS, Efficiencies, Figure, Way, in_words
from .measured import MEASURED, Measured
from .rate import Rate

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
CPU_MEMORY, CPU_LINK = 10e9, 1e9
"""Bytes a second of one process among several, and between processes of one machine by gloo."""
READING = 1e9
"""Bytes a second from the file system to the device, of each rank; the loop waits for them."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What one rank does in a second, operations or bytes, by the work of a call; and what each costs at least."""

    products: Rate
    attention_forward: Rate
    attention_backward: Rate
    memory: Rate
    optimizer_memory: Rate
    link: Mapping[Way, Rate]
    """Sent to the others of a node."""
    network: Mapping[Way, Rate]
    """Sent to other nodes, by each device's port."""
    reading: float = READING
    message_seconds: Mapping[Way, float]
    """From the call to the first byte."""
    launch_seconds: float
    assumptions: tuple[str, ...] = ()
    """Every figure above, measured or assumed, in words."""

    @property
    def best(self) -> "Rates":
        """At which no call, whatever its size, takes longer than at these."""
        flat = {name: Rate.flat(rate.best) for name, rate in vars(self).items() if isinstance(rate, Rate)}
        link, network = (
            {way: Rate.flat(rate.best) for way, rate in rates.items()} for rates in (self.link, self.network)
        )
        return replace(self, **flat, link=link, network=network)


def rates_of(
    hardware: Hardware,
    precision: Precision,
    *,
    peak_tflops: float = 0.0,
    repeatable: bool = True,
    efficiencies: Efficiencies | None = None,
) -> Rates:
    """`peak_tflops`: instead of the table's peak, where it is not 0; `repeatable`: whether backends repeat their bits;
    `efficiencies`: what was measured on the device at hand, instead of the table's.

    Raises ValueError where no peak is known at this precision and none is given.
    """
    if hardware.is_host:
        figures = _cpu(hardware, peak_tflops)
    else:
        figures = _of_peaks(hardware, precision, peak_tflops, repeatable)
    measured = efficiencies or Efficiencies(figures={})
    figures = {name: figure for name, figure in figures.items() if name not in measured.replaced} | measured.figures
    starts = {way: measured.message_seconds.get(way, hardware.message_seconds) for way in WAYS}
    links = {
        name: {way: figures[f"{name}_{way}" if f"{name}_{way}" in figures else name][0] for way in WAYS}
        for name in ("link", "network")
    }
    return Rates(
        **{name: rate for name, (rate, _) in figures.items() if not name.startswith(tuple(links))},
        **links,
        message_seconds=starts,
        launch_seconds=hardware.launch_seconds,
        assumptions=(
            *_published(hardware, precision, peak_tflops),
            *(f"{name.replace('_', ' ')} {words}" for name, (_, words) in figures.items()),
            f"messages begin after {_microseconds(starts.values())} microseconds: "
            f"{'measured' if measured.message_seconds else 'assumed'}; a kernel is launched in "
            f"{1e6 * hardware.launch_seconds:.3g}: assumed",
            f"samples read at {READING / 1e9:g} GB/s a rank, while the loop waits: assumed",
        ),
    )


def _published(hardware: Hardware, precision: Precision, peak_tflops: float) -> tuple[str, ...]:
    if hardware.is_host:
        return ("no limit of memory is known: the machine's own is shared by its processes",)
    whence = "trainer.peak_tflops" if peak_tflops else hardware.source
    return (
        f"peak {peak_tflops or hardware.peak_tflops[precision]:g} TFLOP/s at {precision}: {whence}",
        f"memory {hardware.memory_gib:g} GiB, node of {hardware.devices_per_node}, "
        f"network {hardware.network_gbs:g} GB/s a device: {hardware.node_source}",
    )


def _of_peaks(hardware: Hardware, precision: Precision, peak_tflops: float, repeatable: bool) -> dict[str, Figure]:
    peak = peak_tflops or hardware.peak_tflops.get(precision, 0.0)
    if not peak:
        raise ValueError(f"no peak of {hardware.key} is known at {precision}: set --trainer.peak-tflops")
    figures = {}
    for name in ("products", "attention_forward", "attention_backward", "memory", "optimizer_memory"):
        is_atomic = name == "attention_backward" and not repeatable
        share, whence = _share(hardware, "attention_backward_unrepeatable" if is_atomic else name)
        whole = peak * 1e12 if name in IN_OPERATIONS else hardware.memory_gbs * 1e9
        unit = "operations" if name in IN_OPERATIONS else "bytes"
        figures[name] = share * whole, f"{in_words(share, unit, '.3f', ' of the peak')}: {whence}"
    for name, gbs in (("link", hardware.link_gbs), ("network", hardware.network_gbs)):
        rate = Rate.flat(gbs * LINK_SHARE * 1e9)
        figures[name] = rate, f"at {LINK_SHARE:g} of {gbs:g} GB/s, whatever the size of a message: assumed"
    return figures


def _cpu(hardware: Hardware, peak_tflops: float) -> dict[str, Figure]:
    (found,) = (each for each in MEASURED if each.hardware == hardware.key)
    rate = Rate.flat(peak_tflops * 1e12) if peak_tflops else Rate(found.points) * 1e12
    whence = "assumed: trainer.peak_tflops" if peak_tflops else f"measured: {_where(found)}, two threads a process"
    figures = {
        name: (rate, f"{in_words(rate * 1e-12, 'operations', '.3f', ' TFLOP/s')} a process: {whence}")
        for name in IN_OPERATIONS
    }
    others = {"memory": CPU_MEMORY, "optimizer_memory": CPU_MEMORY, "link": CPU_LINK, "network": CPU_LINK}
    return figures | {
        name: (Rate.flat(rate), f"at {rate / 1e9:g} GB/s a process, whatever the size: assumed")
        for name, rate in others.items()
    }


def _share(hardware: Hardware, name: str) -> tuple[Rate, str]:
    for measured in MEASURED:
        if measured.figure == name and measured.hardware == hardware.key:
            return Rate(measured.points), f"measured: {_where(measured)}"
        if measured.figure == name and measured.hardware == SAME_CHIP.get(hardware.key):
            return Rate(measured.points), f"assumed: {measured.hardware}'s, the same chip, {_where(measured)}"
    return Rate.flat(ASSUMED[name]), "assumed"


def _microseconds(seconds: Collection[float]) -> str:
    return " to ".join(dict.fromkeys(f"{1e6 * each:.3g}" for each in (min(seconds), max(seconds))))


def _where(measured: Measured) -> str:
    return f"{measured.file}, {measured.date}"
