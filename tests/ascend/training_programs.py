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
    *, shards: str, folder: str, layout: dict, steps: int = 5, wish: tuple = (), repeatable: bool = True, **model
) -> dict:
    """Trains to step `steps`, or resumes there; its lines, where it ran and by which kernels."""
    torch.set_num_threads(1)
    config = small_config(
        Path(folder),
        Path(shards),
        model={"layers": 2, "heads": 3, **model},
        trainer={"max_steps": steps, "checkpoint_every": 4, "keep_checkpoints": 3, "validate_every": 4},
    )
    kernels = replace(config.kernels, wish=tuple(wish), repeatable=repeatable)
    trainer.train(replace(config, parallel=ParallelConfig(**layout), kernels=kernels), StopSignals())
    device = build_mesh(ParallelConfig(**layout)).device
    leave_world()
    lines = [{key: line[key] for key in FIGURES if key in line} for line in read_metrics(Path(folder, METRICS_FILE))]
    return {
        "device": str(device),
        "lines": lines,
        "hccl": {k: v for k, v in os.environ.items() if k.startswith("HCCL")},
    }
