"""How long messages of a world's ranks take: what the planner's time of every layout rests on beside the kernels.

Bytes are those that a rank sends, as model/volume.py counts them: of a sum of n bytes over p ranks 2 n (p - 1) / p, of
a gathering or a scattering n (p - 1) / p of the whole n, of an exchange all but what stays, of a message itself.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
import torch.distributed as distributed

from ..kernels.device import is_accelerator, wait_for
from ..parallel.mesh import Mesh

SIZES = {"cpu": (2**10, 2**16, 2**18, 2**20, 2**22, 2**24), "accelerator": (2**12, 2**20, 2**22, 2**24, 2**26, 2**28)}
"""Bytes of the whole tensor."""
SHORTEST = 1e-6
"""Seconds that no message is below: what is left of two measured times may be nothing."""
WORK = {"cpu": 384, "accelerator": 2048}
"""Side of the product that ranks make before each message: half a millisecond and less."""
IN_A_ROW = 5


@dataclass(frozen=True, kw_only=True)
class MessageRow:
    """One kind of message of one size; times are the slowest rank's."""

    op: str
    """As engine/planner/efficiencies.py names the ways of sending."""
    case: str
    direction: str
    """node: all ranks of one node; nodes: one rank on each."""
    backend: str
    ms: float
    gbytes: float
    """10^9 bytes that a rank sends."""
    gbs: float
    gflops: float = 0.0


def measure_messages(mesh: Mesh, direction: str, tries: int = 4) -> list[MessageRow]:
    """The same rows on every rank of the mesh's world, all of which call this at once; medians of `tries`.

    Messages come behind work, as in a step: ranks do not end it at one moment, and one that waits must be woken.
    """
    kind = "accelerator" if is_accelerator(mesh.device) else "cpu"
    square = torch.ones(WORK[kind], WORK[kind], device=mesh.device)

    def work() -> None:
        torch.mm(square, square)

    rows = []
    for size in SIZES[kind]:
        # A ring's p messages and an exchange's p parts divide this.
        values = size // 4 // mesh.world_size * mesh.world_size
        for op, (sent, messages, call) in _calls(mesh, values).items():
            seconds = median(_timed((work, call), mesh) - _timed((work,), mesh) for _ in range(tries)) / messages
            seconds = max(seconds, SHORTEST)
            rows.append(
                MessageRow(
                    op=op,
                    case=f"{4 * values} bytes",
                    direction=direction,
                    backend=distributed.get_backend(),
                    ms=1e3 * seconds,
                    gbytes=sent / 1e9,
                    gbs=sent / seconds / 1e9,
                )
            )
    return rows


def _calls(mesh: Mesh, values: int) -> dict[str, tuple[float, int, Callable[[], object]]]:
    """Bytes of a message, how many there are, and the call that sends them."""
    ranks, rank = mesh.world_size, mesh.rank
    whole = torch.ones(values, device=mesh.device)
    part, out = whole[: values // ranks].clone(), torch.empty_like(whole)
    around = 4 * values * (ranks - 1) / ranks

    def shards() -> None:
        distributed.reduce_scatter_tensor(part, whole)
        distributed.all_gather_into_tensor(out, part)

    def neighbours() -> None:
        for work in distributed.batch_isend_irecv([
            distributed.P2POp(distributed.isend, whole, (rank + 1) % ranks),
            distributed.P2POp(distributed.irecv, out, (rank - 1) % ranks),
        ]):  # fmt: skip
            work.wait()

    return {
        "sums": (2 * around, 1, lambda: distributed.all_reduce(whole)),
        "shards": (around, 2, shards),
        "exchanges": (around, 1, lambda: distributed.all_to_all_single(out, whole)),
        "neighbours": (4 * values, 1, neighbours),
    }


def _timed(calls: Sequence[Callable[[], object]], mesh: Mesh) -> float:
    """Seconds of the calls one after the other, on the slowest rank."""
    wait_for(mesh.device)
    mesh.barrier()
    started = time.perf_counter()
    for _ in range(IN_A_ROW):
        for call in calls:
            call()
    wait_for(mesh.device)
    seconds = (time.perf_counter() - started) / IN_A_ROW
    return float(mesh.largest(torch.tensor([seconds], device=mesh.device))[0])
