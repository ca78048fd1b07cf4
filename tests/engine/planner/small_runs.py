"""Small runs as configurations, which the planner and the real engine both take."""

from contentv.engine.config import DataConfig, OptimizerConfig, RunConfig, RunFolderConfig, SampleConfig, TrainerConfig
from contentv.kernels.config import KernelConfig
from contentv.model.config import FlowConfig, ModelConfig
from contentv.parallel.config import ParallelConfig

MODEL = {"layers": 4, "heads": 6, "head_width": 16, "text_width": 24, "pooled_width": 20, "channels": 4}
LATENTS = (4, 16, 24)
TEXT_TOKENS = 13


def small_run(*, layout: dict | None = None, model: dict | None = None, trainer: dict | None = None,
              kernels: dict | None = None) -> RunConfig:  # fmt: skip
    """A run of a small model that no shards exist for."""
    settings = {"max_steps": 2, "global_batch": 4, "micro_batch": 2, "checkpoint_every": 1}
    return RunConfig(
        recipe="small",
        run=RunFolderConfig(folder="small"),
        model=ModelConfig(**MODEL | {"initialisation": "normal"} | (model or {})),
        flow=FlowConfig(),
        data=DataConfig(folder="small"),
        parallel=ParallelConfig(**layout or {}),
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=0, schedule="constant"),
        trainer=TrainerConfig(**settings | (trainer or {})),
        kernels=KernelConfig(**kernels or {}),
        sample=SampleConfig(steps=1, guidance=1.0, fps=8.0),
    )
