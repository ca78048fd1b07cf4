"""Checkpoints by megatron-core's dist_checkpointing: written in one layout of ranks, read in any other.

Weights, masters, moments and average are stored whole and canonical, under the names of the parameters in memory.
Atomic: a checkpoint's folder has its name only once everything in it is on disk.

Training may go on while one is written (`start`, then `Saving.publish`): the state is copied first, and a thread of
this process writes the copy. Not megatron's process, which it forks from the rank: that one would outlive a rank that
is killed and write into the folder its successor uses, needs another process that a stop signal to the group ends,
and hangs where it should fail. What ranks must tell each other, they tell from the training loop, all in the same
step; the thread speaks to nobody.

What megatron 0.16 and torch read back is pickle, which can run code: common.pt (torch.load) and .metadata (pickle.load)
as a whole, and in the .distcp files whatever is no tensor (torch.load with weights_only False; tensors alone are read
with weights_only True). So nothing is loaded but `VerifiedTensors`: every file has the digest that its run recorded.
"""

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from .durable import publish_folder
from .megatron import (
    FullyParallelSaveStrategyWrapper,
    ShardedTensor,
    ShardedTensorFactory,
    StrictHandling,
    dist_checkpointing,
)
from .mesh import Mesh
from .optimizer import Optimizer
from .reading import file_sha256
from .training import DataParallel
from .writing import PlannedWrite, Planner

ROOM = 2**20
"""Bytes that must be free before a checkpoint is begun."""

Digests = dict[str, str]
"""Name of a file in a checkpoint's `tensors` folder -> its sha256 (hex)."""

Describe = Callable[[Path, Digests], None]
"""(partial folder, digests) -> None: adds the checkpoint's own small files, on rank 0.

The digests are those of the files that hold tensors, each computed by the rank that wrote it.
"""

TENSORS = "tensors"
"""Subfolder of a checkpoint that megatron writes."""

REMEDY = "restore it, or remove the checkpoint's folder to go on from the one before it"


@dataclass(frozen=True)
class VerifiedTensors:
    """The stored tensors of a checkpoint's folder, after `verify` compared them with their digests."""

    folder: Path


def save(folder: Path, model: DataParallel, optimizer: Optimizer, describe: Describe) -> None:
    """Writes `folder` and waits for it; every rank calls it.

    Raises:
        OSError: on all ranks alike: one of them could not write. The folder's name is not given.
    """
    start(folder, model, optimizer, describe).publish()


def start(folder: Path, model: DataParallel, optimizer: Optimizer, describe: Describe) -> "Saving":
    """Copies the state and begins to write `folder`; every rank calls it. The model may be trained on at once."""
    mesh = model.mesh
    assert not folder.exists(), f"{folder} is published already, and a published checkpoint never changes"
    partial = folder.with_name(f".{folder.name}.partial")
    with alike(mesh, folder):
        if mesh.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            (partial / TENSORS).mkdir(parents=True)
            _check_room(partial)
    model.gather()
    planner = Planner()
    dist_checkpointing.save(
        _snapshot(model, optimizer),
        str(partial / TENSORS),
        # Data-parallel ranks hold the same tensors; each writes a part of them.
        FullyParallelSaveStrategyWrapper(planner, mesh.data_and_context),
        async_sharded_save=True,
    )
    return Saving(folder, partial, mesh, planner.planned, describe)


class Saving:
    """A checkpoint that is being written: this rank's share of it, by a thread."""

    def __init__(self, folder: Path, partial: Path, mesh: Mesh, planned: PlannedWrite, describe: Describe):
        self.folder, self.partial, self.mesh = folder, partial, mesh
        self._planned, self._describe = planned, describe
        self._results: list = []
        self._digests: Digests = {}
        self._failure: Exception | None = None
        # A daemon: a process that ends by an error must not stay for a checkpoint that nobody will publish.
        self._thread = threading.Thread(target=self._write, name=f"writes {folder.name}", daemon=True)
        self._thread.start()

    @property
    def is_written(self) -> bool:
        """Whether this rank's share is on disk, or failed."""
        return not self._thread.is_alive()

    def publish(self) -> None:
        """Waits until all ranks have written, and gives the folder its name; every rank calls it, in the same step.

        Raises:
            OSError: on all ranks alike: one of them could not write. The folder keeps its partial name.
        """
        self._thread.join()
        with alike(self.mesh, self.folder):
            if self._failure is not None:
                raise self._failure
        shares = self.mesh.collected((self._results, self._digests))
        with alike(self.mesh, self.folder):
            if self.mesh.rank == 0:
                self._planned.finish([results for results, _ in shares])
                self._describe(self.partial, {name: digest for _, own in shares for name, digest in own.items()})
                publish_folder(self.partial, self.folder)

    def _write(self) -> None:
        try:
            self._results = self._planned.write()
            written = (self.partial / TENSORS).glob(f"__{self.mesh.rank}_*.distcp")
            self._digests = {path.name: file_sha256(path) for path in written}
        except Exception as error:
            self._failure = error


@contextmanager
def alike(mesh: Mesh, folder: Path) -> Iterator[None]:
    """What one rank meets inside, all ranks raise, so that nobody waits for one that is gone.

    Raises:
        OSError: of `folder`, naming the rank and what it met.
    """
    failure = told = None
    try:
        yield
    except Exception as error:
        failure = error
        first = _first(error)
        told = getattr(first, "errno", None) or errno.EIO, f"rank {mesh.rank}: {type(first).__name__}: {first}"
    for number, words in filter(None, mesh.gathered(told)):
        raise OSError(number, f"the checkpoint was not saved ({words})", str(folder)) from failure


def _check_room(folder: Path) -> None:
    """Refuses a disk with nothing left: of megatron's first file, rank 0's alone, torch would say "iostream error"."""
    disk = os.statvfs(folder)
    if disk.f_bavail * disk.f_frsize < ROOM:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _first(error: BaseException) -> BaseException:
    """The system's refusal that led to an error, if one did: torch's writer says of a full disk "unexpected pos"."""
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, OSError) and behind.errno:
            return behind
        behind = behind.__cause__ or behind.__context__
    return error


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


def _snapshot(model: DataParallel, optimizer: Optimizer) -> dict:
    """What is to be stored, in host memory of its own. The optimizer's states are gathered into such anyway."""
    content = _content(model, optimizer, is_loading=False)
    for number in range(len(model.modules)):
        for entry in content[f"model{number}"].values():
            if isinstance(entry, ShardedTensor | ShardedTensorFactory):
                entry.data = entry.data.detach().to("cpu", copy=True)
    return content


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
