"""Lives of a run's ranks: trained in some layout, killed at a chosen moment, or asked what they read and hold."""

import os
import signal
import threading
from pathlib import Path

import torch

from contentv.engine import checkpoints, trainer
from contentv.engine.config import RunConfig
from contentv.engine.data.shards import ShardDataset
from contentv.engine.session import Session
from contentv.engine.signals import StopSignals
from contentv.launchers import train as command
from contentv.parallel import checkpoint
from contentv.parallel.config import ParallelConfig
from contentv.parallel.megatron import FileSystemWriterAsync
from contentv.parallel.mesh import leave_world
from contentv.tests.parallel.layout_programs import pieces
from tests.engine.small_run import small_config


def live(*, moment: str | None = None, number: int = 0, victim: int | None = None, **wanted) -> dict:
    """Trains as `config_of(**wanted)` says; dies the `number`th time that it comes to `moment`, counted from 1.

    `moment` "time": `number` milliseconds after the first step began. `victim`: the one rank that dies; None: all do,
    as in a power failure.
    """
    if moment is not None and victim in (None, int(os.environ["RANK"])):
        arrange_death(moment, number)
    read = record_reading()
    outcome = trainer.train(config_of(**wanted), StopSignals())
    leave_world()
    return {"step": outcome.step, "read": read}


def config_of(*, folder: str, shards: str, **sections) -> RunConfig:
    torch.set_num_threads(1)
    parallel = ParallelConfig(**sections.pop("parallel", {}))
    config = small_config(Path(folder), Path(shards), **sections)
    return RunConfig(**(vars(config) | {"parallel": parallel}))


def record_reading() -> list[list[int]]:
    """Sample ids of every read of training from now on, as they come."""
    ids, read = [], ShardDataset.read

    def noted(dataset, sample_ids):
        ids.append(list(sample_ids))
        return read(dataset, sample_ids)

    def start(config):
        # What is read before, to learn shapes, is no training.
        session = open_session(config)
        ids.clear()
        return session

    open_session = trainer.open_session
    trainer.open_session, ShardDataset.read = start, noted
    return ids


def arrange_death(moment: str, number: int) -> None:
    """Replaces what `moment` names by a function that ends the process in it, the `number`th time."""

    def later(original, *given):
        threading.Timer(milliseconds / 1000, die).start()
        return original(*given)

    milliseconds, number = (number, 1) if moment == "time" else (0, number)
    owner, name, fatal = {
        "time": (trainer, "take_step", later),
        "step": (trainer, "take_step", lambda original, *given: die()),
        "copying": (checkpoint, "_snapshot", lambda original, *given: original(*given) and die()),
        "half a file": (FileSystemWriterAsync, "write_preloaded_data", _half),
        "before the name": (checkpoint, "publish_folder", lambda original, *given: die()),
        "after the name": (checkpoint, "publish_folder", lambda original, *given: (original(*given), die())),
        "removing": (checkpoints.shutil, "rmtree", _half_removed),
    }[moment]
    original, calls = getattr(owner, name), []

    def counted(*given, **named):
        # Of removals, those of what has been complete.
        if name != "rmtree" or Path(given[0], checkpoints.FACTS_FILE).exists():
            calls.append(1)
            if len(calls) == number:
                return fatal(original, *given, **named)
        return original(*given, **named)

    setattr(owner, name, staticmethod(counted) if isinstance(owner, type) else counted)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _half(original, transforms, number, bucket, **queues) -> None:
    original(transforms, number, bucket, **queues)
    file = Path(bucket[0])
    os.truncate(file, file.stat().st_size // 2)
    die()


def _half_removed(original, folder, *_, **__) -> None:
    for path in sorted(Path(folder, "tensors").iterdir())[:2]:
        path.unlink()
    die()


def hold(*, results: str, **wanted) -> dict:
    """Trains to the end, and writes this rank's pieces of weights and average, by name, into `results`."""
    seen: list[Session] = []
    open_session = trainer.open_session

    def remembered(config):
        seen.append(open_session(config))
        return seen[-1]

    trainer.open_session = remembered
    outcome = trainer.train(config_of(**wanted), StopSignals())
    (session,) = seen
    trained = session.model
    trained.gather()
    weights = {name: parameter.detach() for name, parameter in trained.named_parameters()}
    content = {"raw": pieces(trained, weights), "ema": pieces(trained, session.optimizer.averaged())}
    Path(results).mkdir(parents=True, exist_ok=True)
    torch.save(content, Path(results) / f"{session.mesh.rank}.pt")
    leave_world()
    return {"step": outcome.step}


def run_command(*, argv: list[str]) -> dict:
    """`contentv train` with these words."""
    return {"status": command.main(argv)}
