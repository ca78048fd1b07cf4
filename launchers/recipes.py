"""Recipes: each function returns one whole `RunConfig`, and its name is what the command line takes.

`contentv train quickstart --trainer.max-steps 20` starts from `quickstart()` and changes one value.
"""

from collections.abc import Callable

from ..engine.config import (
    DataConfig,
    OptimizerConfig,
    RunConfig,
    RunFolderConfig,
    SampleConfig,
    TrainerConfig,
)
from ..kernels.config import KernelConfig
from ..model import config as models
from ..model.config import FlowConfig
from ..parallel.config import ParallelConfig


def quickstart() -> RunConfig:
    """A toy model on a handful of real clips: trains in minutes on two CPU cores."""
    return RunConfig(
        recipe="quickstart",
        run=RunFolderConfig(folder="runs/quickstart"),
        model=models.quickstart(),
        flow=FlowConfig(density="logit_normal", mean=0.0, std=1.0, shift=1.0, caption_dropout=0.1),
        data=DataConfig(folder="data/quickstart/shards"),
        parallel=ParallelConfig(),
        optimizer=OptimizerConfig(
            learning_rate=1e-3, warmup_steps=50, schedule="cosine", beta1=0.9, beta2=0.99, ema_decay=0.99
        ),
        trainer=TrainerConfig(
            max_steps=700,
            global_batch=8,
            micro_batch=8,
            checkpoint_every=50,
            validate_every=100,
            precision="fp32",
        ),
        kernels=KernelConfig(),
        sample=SampleConfig(steps=40, guidance=2.0, fps=8.0),
    )


def contentv_8b() -> RunConfig:
    """The published 8B transformer on Wan-VAE latents.

    Shape, guidance and sampling steps are published (arXiv 2506.05343). Timestep density and shift, learning rate,
    batch, EMA and every other training value are not: those below are our choice, not ContentV's.
    """
    return RunConfig(
        recipe="contentv_8b",
        run=RunFolderConfig(folder="runs/contentv_8b"),
        model=models.contentv_8b(),
        flow=FlowConfig(density="logit_normal", mean=0.0, std=1.0, shift=3.0, caption_dropout=0.1),
        data=DataConfig(folder="data/contentv_8b/shards", held_out_samples=1024),
        parallel=ParallelConfig(),
        optimizer=OptimizerConfig(
            learning_rate=1e-4, warmup_steps=1000, schedule="constant", beta1=0.9, beta2=0.95, weight_decay=0.01
        ),
        trainer=TrainerConfig(
            max_steps=100_000,
            global_batch=256,
            micro_batch=1,
            checkpoint_every=500,
            keep_checkpoints=3,
            validate_every=1000,
            precision="bf16",
            recompute="full",
        ),
        kernels=KernelConfig(),
        sample=SampleConfig(steps=50, guidance=6.0, fps=24.0),
    )


RECIPES: dict[str, Callable[[], RunConfig]] = {recipe.__name__: recipe for recipe in (quickstart, contentv_8b)}
