"""What one rank's device and its node do, in seconds: a product, a copy, a sum over the node's ranks.

The figures are the best of many short tries: a neighbour's moment is not the node's fault. engine/node_verdict.py
judges them.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as distributed

from ..kernels.device import is_accelerator, name_of, wait_for
from ..parallel.accelerator import device_of, present
from ..parallel.config import ParallelConfig
from ..parallel.mesh import build_mesh
from ..parallel.world import local_rank
from .node_verdict import keep

SECONDS = 0.5
"""For each figure."""
MEET_WITHIN = 120.0
"""Seconds; a rank that does not come is named by the mark that it left before it asked its device."""


def measure(folder: Path, *, node: str, rank: int, ranks_here: int) -> None:
    """Keeps this rank's figures in `folder` before it meets the others, and with the sum over its node afterwards."""
    # Before the ranks meet: a device that does not work must not be told as a failed meeting of all.
    device = own_device()
    record = {"node": node, "rank": rank, "device": device.type, "name": name_of(device), "ranks_here": ranks_here}
    record |= {"error": None}
    record |= {"matmul_tflops": matmul(device), "copy_gb_per_s": copy(device)}
    keep(folder, record)
    mesh = build_mesh(ParallelConfig(tensor=ranks_here, timeout_seconds=MEET_WITHIN))
    if ranks_here > 1:
        keep(folder, record | {"all_reduce_gb_per_s": all_reduce(mesh.tensor, mesh.device)})
    mesh.barrier()


def own_device() -> torch.device:
    return device_of(present(), local_rank(os.environ))


def matmul(device: torch.device) -> float:
    """TFLOP/s of a square product, in the dtype that is trained in there."""
    size, dtype = (8192, torch.bfloat16) if is_accelerator(device) else (384, torch.float32)
    left, right = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / 1e12 / shortest(lambda: left @ right, device)


def copy(device: torch.device) -> float:
    """GB/s of the device's memory, read and write counted both."""
    source = torch.ones(2**28 if is_accelerator(device) else 2**20, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / 1e9 / shortest(lambda: target.copy_(source), device)


def all_reduce(group: distributed.ProcessGroup, device: torch.device) -> float:
    """GB/s of one tensor summed over the node's ranks: its bytes by the time of the whole sum.

    A fixed number of tries: ranks that stopped by their own clocks would wait for each other.
    """
    values = torch.ones(2**26 if is_accelerator(device) else 2**18, device=device)
    times = [timed(lambda: distributed.all_reduce(values, group=group), device) for _ in range(10)]
    return values.nbytes / 1e9 / min(times)


def shortest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the quickest of the tries that fit into SECONDS; the first one only warms up."""
    timed(work, device)
    until, times = time.monotonic() + SECONDS, []
    while not times or time.monotonic() < until:
        times.append(timed(work, device))
    return min(times)


def timed(work: Callable[[], object], device: torch.device) -> float:
    started = time.monotonic()
    work()
    wait_for(device)
    return max(time.monotonic() - started, 1e-9)
