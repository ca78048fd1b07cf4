"""Checkpoints by megatron-core's dist_checkpointing: written in one layout of ranks, read in any other.

Weights, masters, moments and average are stored whole and canonical, under the names of the parameters in memory.
Atomic: a checkpoint's folder has its name only once everything in it is on disk.

What megatron 0.16 and torch read back is pickle, which can run code: common.pt (torch.load) and .metadata (pickle.load)
as a whole, and in the .distcp files whatever is no tensor (torch.load with weights_only False; tensors alone are read
with weights_only True). So nothing is loaded but `VerifiedTensors`: every file has the digest that its run recorded.
"""

import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path

import torch

from .durable import publish_folder
from .megatron import (
    ShardedTensor,
    ShardedTensorFactory,
    StrictHandling,
    _get_write_results_queue,
    dist_checkpointing,
)
from .mesh import Mesh
from .optimizer import Optimizer
from .reading import file_sha256
from .training import DataParallel

Digests = dict[str, str]
"""Name of a file in a checkpoint's `tensors` folder -> its sha256 (hex)."""

TENSORS = "tensors"
"""Subfolder of a checkpoint that megatron writes."""

REMEDY = "restore it, or remove the checkpoint's folder to go on from the one before it"

HELD_BACK = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""From megatron's writer process, which must outlive a request to stop."""


@dataclass(frozen=True)
class VerifiedTensors:
    """The stored tensors of a checkpoint's folder, after `verify` compared them with their digests."""

    folder: Path


def save(folder: Path, model: DataParallel, optimizer: Optimizer, describe: Callable[[Path, Digests], None]) -> None:
    """Writes `folder`; every rank calls it.

    `describe(partial, digests)` adds the checkpoint's own small files, on rank 0; it is given the digests of the files
    that hold tensors, each computed by the rank that wrote it.
    """
    mesh = model.mesh
    assert not folder.exists(), f"{folder} is published already, and a published checkpoint never changes"
    partial = folder.with_name(f".{folder.name}.partial")
    if mesh.rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / TENSORS).mkdir(parents=True)
    mesh.barrier()
    model.gather()
    content = _content(model, optimizer, is_loading=False)
    _start_writer()
    dist_checkpointing.save(content, str(partial / TENSORS))
    written = (partial / TENSORS).glob(f"__{mesh.rank}_*.distcp")
    digests = mesh.gathered({path.name: file_sha256(path) for path in written})
    if mesh.rank == 0:
        describe(partial, {name: digest for share in digests for name, digest in share.items()})
        publish_folder(partial, folder)
    mesh.barrier()


def verify(folder: Path, digests: Digests, mesh: Mesh) -> VerifiedTensors:
    """Compares the stored tensors in `folder` with the digests of all their files; every rank calls it.

    The files are shared out: each is read by one rank, whose finding is everybody's. What the disk holds twice as fast
    as one rank reads, many ranks read at once.

    Raises:
        ValueError: on all ranks alike: a file differs, is missing, or is none that the run wrote.
    """
    place = folder / TENSORS
    there = {path.relative_to(place).as_posix() for path in place.rglob("*") if not path.is_dir() or path.is_symlink()}
    names = sorted(there | digests.keys())
    findings = mesh.gathered([_damage(place, name, digests) for name in names[mesh.rank :: mesh.world_size]])
    damages = [damage for share in findings for damage in share if damage]
    if damages:
        raise ValueError(damages[0])
    return VerifiedTensors(folder)


def _damage(place: Path, name: str, digests: Digests) -> str | None:
    """What is wrong with one file; None if it is as it was written."""
    path = place / name
    if name not in digests:
        return f"{path}: found a file that checkpoint.json does not list: remove it"
    try:
        found = file_sha256(path)
    except OSError as error:
        return f"{path}: not readable ({error.strerror}): {REMEDY}"
    if found != digests[name]:
        return f"{path}: found sha256 {found}; expected {digests[name]}: {REMEDY}"
    return None


def load(stored: VerifiedTensors, model: DataParallel, optimizer: Optimizer) -> None:
    """Sets weights, masters, moments and average from a checkpoint of any layout."""
    content = _content(model, optimizer, is_loading=True)
    loaded = dist_checkpointing.load(content, str(stored.folder / TENSORS), strict=StrictHandling.RAISE_ALL)
    for number, module in enumerate(model.modules):
        module.load_state_dict(loaded[f"model{number}"])
    optimizer.sharded.load_state_dict(loaded["optimizer"])


def load_weights(stored: VerifiedTensors, module: torch.nn.Module, *, averaged: bool) -> None:
    """Sets the weights alone, from the average or the weights of a checkpoint, without an optimizer."""
    wanted = module.sharded_state_dict(metadata=_metadata(module.mesh))
    wanted = {name: entry for name, entry in wanted.items() if isinstance(entry, ShardedTensor | ShardedTensorFactory)}
    prefix = "optimizer.state.ema." if averaged else ""
    for entry in wanted.values():
        entry.key = prefix + entry.key
        if averaged:
            # The average is stored in fp32 whatever the weights' precision is.
            entry.data = torch.empty_like(entry.data, dtype=torch.float32)
            if isinstance(entry, ShardedTensor):
                entry.dtype = torch.float32
    loaded = dist_checkpointing.load(wanted, str(stored.folder / TENSORS))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(loaded[name])


def plain_tensors(stored: VerifiedTensors, mesh: Mesh) -> dict[str, torch.Tensor]:
    """Every sharded tensor of a checkpoint, whole, under its stored name; for comparing, in a world of one."""
    # The mesh is asked for because reading needs its process groups, and megatron says so only deep inside.
    assert mesh.world_size == 1, "every rank would read everything"
    tensors = dist_checkpointing.load_plain_tensors(str(stored.folder / TENSORS))
    return {name: value for name, value in tensors.items() if isinstance(value, torch.Tensor)}


def _content(model: DataParallel, optimizer: Optimizer, *, is_loading: bool) -> dict:
    metadata = _metadata(model.mesh)
    weights = {
        f"model{number}": module.sharded_state_dict(metadata=metadata) for number, module in enumerate(model.modules)
    }
    states = optimizer.sharded.sharded_state_dict(weights, is_loading=is_loading, metadata=metadata)
    return {**weights, "optimizer": states}


def _metadata(mesh: Mesh) -> dict:
    # The one format of megatron's that any layout can read back.
    return {"distrib_optim_sharding_type": "fully_reshardable", "dp_cp_group": mesh.data_and_context}


def _start_writer() -> None:
    """Starts the process megatron's first save would start, while the stop signals are held back.

    That process lives as long as the run, and a signal to the whole process group (Slurm's time limit, scancel) would
    end it before the very save it asks for. It inherits the blocked signals; this process gets them afterwards.
    """
    # First: it unblocks SIGTERM by itself when it starts.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    try:
        _get_write_results_queue()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
