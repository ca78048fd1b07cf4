"""Which world of processes this one was started in, as torchrun or Slurm's srun announces it. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
"""srun sets these for each task; where the ranks meet, the job's script must say in MASTER_ADDR and MASTER_PORT."""


@dataclass(frozen=True, kw_only=True)
class World:
    """One process's place among all."""

    rank: int
    size: int
    local_rank: int
    """Among the processes of its node."""
    address: str
    port: int
    """Where rank 0 listens."""


def announced_world(environment: Mapping[str, str]) -> World | None:
    """The announced world; None where nothing is announced, or only one Slurm task: a world of one.

    Raises:
        ValueError: it is announced in part, or a number is none. A rank that missed the others would train a run of
            its own into the same folder.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        names = TORCHRUN
    elif int(_number(environment, "SLURM_NTASKS")) > 1 and "SLURM_PROCID" in environment:
        names = (*SLURM, "MASTER_ADDR", "MASTER_PORT")
    else:
        return None
    rank_name, size_name, local_name = names[:3]
    missing = [name for name in names if name not in environment and name != local_name]
    if missing:
        raise ValueError(
            f"the environment sets {rank_name} and {size_name} of several processes, but not {', '.join(missing)}: "
            "start ranks with torchrun, which sets all; or with srun, exporting MASTER_ADDR (a node of the job) and "
            "MASTER_PORT (a free port) in the job script; or unset them for a world of one"
        )
    world = World(
        rank=_number(environment, rank_name),
        size=_number(environment, size_name),
        local_rank=_number(environment, local_name),
        address=environment["MASTER_ADDR"],
        port=_number(environment, "MASTER_PORT"),
    )
    if not 0 <= world.rank < world.size:
        raise ValueError(
            f"the environment says {rank_name}={world.rank} of {size_name}={world.size}; ranks count from 0 to one "
            "below the size: start all processes with one torchrun or srun"
        )
    return world


def local_rank(environment: Mapping[str, str]) -> int:
    """This process's number among those of its node, for work that shares devices but needs no world; else 0."""
    return _number(environment, "LOCAL_RANK" if "LOCAL_RANK" in environment else "SLURM_LOCALID")


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "0")
    if not value.isdigit():
        raise ValueError(f"the environment sets {name}={value!r}; it must be a whole number: correct or unset it")
    return int(value)
