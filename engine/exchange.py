"""Between runs and published weights: a run's weights out, published weights in as the start of a run."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from ..kernels.registry import choose
from ..model import published
from ..model.config import ModelConfig, Position
from ..model.mmdit import build
from ..parallel import checkpoint
from ..parallel.config import ParallelConfig
from ..parallel.mesh import build_mesh
from . import config_yaml
from .checkpoints import CheckpointFolder
from .config import RunConfig
from .sampling import find_checkpoint
from .session import DTYPES, open_session, set_weights


def export_run(run: str | Path, folder: str | Path, kind: Literal["ema", "raw"]) -> ModelConfig:
    """Writes a run's last checkpoint in the published layout: the average in fp32, or the weights in their precision.

    Raises ValueError if the run has no checkpoint, or `folder` already holds anything.
    """
    found = find_checkpoint(run)
    if found is None:
        raise ValueError(f"{run} holds no checkpoint; train first, for example: contentv train quickstart")
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already; export into a new or empty folder")
    mesh = build_mesh(ParallelConfig())
    stored = found.verify(mesh)
    dtype = DTYPES["fp32" if kind == "ema" else found.config.trainer.precision]
    model = build(found.config.model, mesh, choose(mesh.device.type, dtype=dtype), dtype=dtype)
    checkpoint.load_weights(stored, model, averaged=kind == "ema")
    model.save_pretrained(folder)
    return found.config.model


def import_weights(folder: str | Path, config: RunConfig, position: Position | None = None) -> Path:
    """Makes published weights the checkpoint of step 0 of a run, which `contentv train` then goes on from.

    The model is the folder's, everything else `config`'s. Returns the run's config.yaml. Raises ValueError for weights
    or data that do not fit, and for a run that has begun already.
    """
    source = published.open_folder(folder, position)
    config = replace(config, model=replace(source.config, initialisation=config.model.initialisation))
    if (last := CheckpointFolder(config.run.folder).latest()) is not None:
        raise ValueError(f"{last.parent} holds {last.name} already; import into another run.folder")
    config.check_layout()
    # Written by one process, whatever layout will read it.
    session = open_session(replace(config, parallel=ParallelConfig()))
    set_weights(session.model, session.optimizer, config, source.tensor)
    session.save(0)
    session.settle(wait=True)
    return config_yaml.save(replace(session.config, parallel=config.parallel), config.run.folder)
