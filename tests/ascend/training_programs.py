"""What ranks run on the simulated NPU and, for comparison, on the CPU."""

import os
from dataclasses import replace
from pathlib import Path

import torch

from contentv.engine import trainer
from contentv.engine.metrics import read_metrics
from contentv.engine.run_files import METRICS_FILE
from contentv.engine.signals import StopSignals
from contentv.parallel.config import ParallelConfig
from contentv.parallel.mesh import build_mesh, leave_world
from tests.engine.small_run import small_config

FIGURES = ("step", "loss", "grad_norm", "validation_loss")


def trained(
    *, shards: str, folder: str, layout: dict | None = None, model: dict | None = None, **changes
) -> dict:  # fmt: skip
    """Trains to step 5, or resumes there; its lines, and where it ran. `changes`: of the trainer's configuration."""
    torch.set_num_threads(1)
    config = small_config(
        Path(folder),
        Path(shards),
        model=model or {"layers": 2, "heads": 3},
        trainer={"max_steps": 5, "checkpoint_every": 4, "keep_checkpoints": 3, "validate_every": 4} | changes,
    )
    parallel = ParallelConfig(**(layout or {}))
    trainer.train(replace(config, parallel=parallel), StopSignals())
    device = build_mesh(parallel).device
    leave_world()
    lines = [{key: line[key] for key in FIGURES if key in line} for line in read_metrics(Path(folder, METRICS_FILE))]
    return {
        "device": str(device),
        "asked to repeat": torch.are_deterministic_algorithms_enabled(),
        "lines": lines,
        "hccl": {k: v for k, v in os.environ.items() if k.startswith("HCCL")},
    }
