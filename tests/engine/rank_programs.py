"""What the ranks of a small world run through `engine.trainer.train`."""

import errno
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch

from contentv.engine import session, trainer
from contentv.engine.config import ProfileConfig
from contentv.engine.data.shards import ShardDataset
from contentv.engine.metrics import read_metrics
from contentv.engine.run_files import METRICS_FILE
from contentv.engine.signals import StopSignals
from contentv.kernels.backend import Backend
from contentv.kernels.ranks import RANKS
from contentv.kernels.registry import TABLE, choose, tabulate
from contentv.parallel.config import ParallelConfig
from contentv.parallel.mesh import build_mesh, leave_world
from contentv.parallel.writing import PlannedWrite
from tests.engine.small_run import small_config


class StopOnOne(StopSignals):
    """Rank 1 is asked to stop during its second step; the others never are."""

    def __init__(self, rank: int):
        super().__init__()
        self.looks = 0
        self.rank = rank

    @property
    def stop_requested(self) -> bool:
        self.looks += 1
        return self.rank == 1 and self.looks >= 2


def stop_on_one(*, shards: str, folder: str) -> dict:
    rank = _rank()
    outcome = trainer.train(_config(folder, shards), StopOnOne(rank))
    leave_world()
    return {"rank": rank, "step": outcome.step, "complete": outcome.complete}


def poison_on_one(*, shards: str, folder: str) -> dict:
    """Rank 1 reads a NaN in one sample; every rank must say so and none may update."""
    rank, read = _rank(), ShardDataset.read

    def poisoned(dataset, sample_ids):
        batch = read(dataset, sample_ids)
        if rank == 1 and 3 in sample_ids:
            batch.latents_BCFYX[list(sample_ids).index(3), 0, 0, 0, 0] = float("nan")
        return batch

    ShardDataset.read = poisoned
    try:
        trainer.train(_config(folder, shards, max_steps=12), StopSignals())
    except trainer.NonFiniteError as error:
        return {"rank": rank, "told": str(error)}
    finally:
        leave_world()
    raise AssertionError("nobody noticed")


def disagree(*, shards: str, folder: str) -> dict:
    """Rank 1 is started with another seed."""
    rank = _rank()
    try:
        trainer.train(_config(folder, shards, seed=rank), StopSignals())
    except ValueError as error:
        return {"rank": rank, "told": str(error)}
    finally:
        leave_world()
    raise AssertionError("nobody noticed")


def lacks_a_library(*, rank: int) -> dict:
    """Rank `rank` alone can not run the first choice of mlp_gelu."""
    fast = Backend(op="mlp_gelu", name="fast", devices=("cpu",), load=lambda: TABLE["mlp_gelu", "reference"].load(),
                   refusal=lambda: "its library is missing" if _rank() == rank else None)  # fmt: skip
    table = tabulate((*TABLE.values(), fast))
    ranks = RANKS | {"cpu": {**RANKS["cpu"], "mlp_gelu": ("fast", "reference")}}
    with patch.object(session, "choose", partial(choose, table=table, ranks=ranks)):
        mesh = build_mesh(ParallelConfig())
        try:
            return {"chosen": session.agreed_kernels(mesh, {}).choices()["mlp_gelu"]}
        except ValueError as error:
            return {"told": str(error)}
        finally:
            leave_world()


def write_fails_on_one(*, shards: str, folder: str) -> dict:
    """Rank 1 cannot write its share of the first checkpoint; every rank must say so, in the same step."""
    rank, write = _rank(), PlannedWrite.write

    def fail(planned):
        if rank == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(planned)

    PlannedWrite.write = fail
    steps, take_step = [], trainer.take_step
    trainer.take_step = lambda session, step, signals: (steps.append(step), take_step(session, step, signals))[1]
    try:
        trainer.train(_config(folder, shards, checkpoint_every=2), StopSignals())
    except OSError as error:
        return {"steps": len(steps), "told": str(error)}
    finally:
        leave_world()
    raise AssertionError("nobody noticed")


def validated(*, shards: str, folder: str, layout: dict) -> list:
    """Trains and validates in a layout, from weights that leave no path shut; every line but for its times."""
    torch.set_num_threads(1)
    config = small_config(
        Path(folder),
        Path(shards),
        model={"layers": 4, "heads": 3},
        trainer={"max_steps": 3, "checkpoint_every": 100, "validate_every": 1, "micro_batch": 1},
    )
    trainer.train(replace(config, parallel=ParallelConfig(**layout)), StopSignals())
    leave_world()
    kept = ("step", "loss", "grad_norm", "validation_loss")
    return [{name: line[name] for name in kept if name in line} for line in read_metrics(Path(folder, METRICS_FILE))]


def profiled(*, shards: str, folder: str, layout: dict, steps: str) -> list:
    """Trains in a layout, some steps profiled; the losses."""
    config = replace(_config(folder, shards, micro_batch=1, max_steps=4), parallel=ParallelConfig(**layout))
    trainer.train(replace(config, profile=ProfileConfig(steps=steps)), StopSignals())
    leave_world()
    return [line["loss"] for line in read_metrics(Path(folder, METRICS_FILE))]


def _config(folder: str, shards: str, **changes):
    torch.set_num_threads(1)
    return small_config(Path(folder), Path(shards), trainer={"max_steps": 6, "checkpoint_every": 100} | changes)


def _rank() -> int:
    return int(os.environ["RANK"])
