"""Everything one run is made of: the `RunConfig` tree and the parts of it that belong to the engine.

Each part sits next to what it configures (model, parallel, kernels) and here are the rest. Nothing here imports torch:
help, recipes and the planner answer at once on a login node. Values are checked when they are made; what depends on the
number of processes is checked by `RunConfig.micro_batches`.
"""

from dataclasses import dataclass, field
from math import isfinite
from re import fullmatch
from typing import Annotated, Any, Literal, get_args

from tyro.conf import Suppress

from ..kernels.config import KernelConfig
from ..model.config import FlowConfig, ModelConfig, Recompute
from ..parallel.config import ParallelConfig
from ..parallel.reading import shown

LONGEST_PATH = 4000

PROBE_LEVELS = 8
"""Noise levels that validation asks each window at."""

Schedule = Literal["constant", "cosine"]
Precision = Literal["fp32", "bf16"]
ProfileTool = Literal["torch", "nsys", "ncu", "msprof"]


@dataclass(frozen=True, kw_only=True)
class RunFolderConfig:
    """Where a run lives and whether it goes on from what is there."""

    folder: str
    """Holds config.yaml, metrics.jsonl, TensorBoard events, checkpoints and samples."""
    resume: bool = True
    """True: go on from the last checkpoint in the folder, if there is one; False: refuse a folder that has one."""

    def __post_init__(self):
        if not self.folder:
            raise ValueError("run.folder is empty; name a folder, for example runs/quickstart")
        _path("run", self)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which shards a run reads."""

    folder: str
    """Shard folder with its manifest.json, as `contentv data` writes it."""
    held_out_samples: int = 0
    """Held-out samples that validation reads, the first ones by id; 0: all of them."""

    def __post_init__(self):
        if not self.folder:
            raise ValueError("data.folder is empty; name a shard folder, for example data/quickstart/shards")
        _path("data", self)
        _at_least("data", self, held_out_samples=0)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101), its schedule, and the average of the weights."""

    learning_rate: float
    """Its highest value, reached after the warm-up."""
    warmup_steps: int
    """Steps over which the learning rate rises linearly; 0: none."""
    schedule: Schedule
    """After the warm-up. constant: stays; cosine: falls to 0 at trainer.max_steps."""
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    """Decoupled: a step shrinks each decayed weight by learning rate x this."""
    decay_biases_and_gains: bool = False
    """False: weight decay leaves biases and norm gains (every 1-D parameter) alone."""
    clip: float = 1.0
    """Largest global gradient norm; a longer gradient is scaled to it. 0: no clipping."""
    ema_decay: float = 0.9999
    """Share of the old average that a step keeps: ema = ema_decay ema + (1 - ema_decay) weights."""

    def __post_init__(self):
        _choice("optimizer", self, schedule=Schedule)
        _at_least("optimizer", self, learning_rate=0, warmup_steps=0, weight_decay=0, clip=0)
        for name in ("beta1", "beta2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        if not (isfinite(self.epsilon) and self.epsilon > 0):
            raise ValueError(f"optimizer.epsilon is {self.epsilon}; it must be a finite number above 0")


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """The training loop: how long, how much at once, and what it leaves behind. A step is one optimizer update."""

    max_steps: int
    """The run is complete after this many steps, counted from 1 over all its resumes."""
    global_batch: int
    """Samples in one step over all processes; it does not change with their number."""
    micro_batch: int
    """Samples in one forward pass of one process; the rest of a step's share is accumulated."""
    checkpoint_every: int
    """Steps between checkpoints; the last step always leaves one."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept; 0: all."""
    async_checkpoint: bool = True
    """True: a step that saves only copies the state, and training goes on while a thread writes the copy; False: it
    waits until the checkpoint is on disk. What is saved, and what is trained, is the same to the bit."""
    log_every: int = 10
    """Steps between visits of the device's values to the host; every step has its line all the same."""
    validate_every: int = 0
    """Steps between passes over the held-out samples; 0: never."""
    seed: int = 0
    """Decides the initial weights, the sample order, noise, timesteps and caption dropout."""
    precision: Precision = "fp32"
    """Of weights, activations and gradients on the device; bf16 keeps fp32 master weights."""
    recompute: Recompute = "none"
    """full: keep only each block's input and run its forward again in the backward pass; selective: keep all but what
    the MLPs make on the way, which is the widest."""
    recompute_blocks: int = 0
    """How many blocks of each pipeline run recompute, the first ones; 0: all of them."""
    threads: int = 0
    """CPU threads a process computes with; 0: what torch chooses."""
    peak_tflops: float = 0.0
    """Peak of one device at this precision, for mfu and hfu; 0: by its name (engine/hardware.py), if it is known."""

    def __post_init__(self):
        _choice("trainer", self, precision=Precision, recompute=Recompute)
        _at_least("trainer", self, max_steps=1, global_batch=1, micro_batch=1, checkpoint_every=1, log_every=1)
        _at_least("trainer", self, keep_checkpoints=0, validate_every=0, recompute_blocks=0, threads=0, peak_tflops=0)
        _at_most("trainer", self, global_batch=2**20, micro_batch=2**20, threads=4096)
        _seed("trainer", self)


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How videos are sampled where the command line does not say otherwise."""

    steps: int
    """Euler steps from noise to video."""
    guidance: float
    """Classifier-free guidance (arXiv 2207.12598): unconditional + guidance x (conditional - unconditional)."""
    fps: float
    """Frames a second of the written file; training does not see it."""
    seed: int = 0
    """Of the initial noise."""

    def __post_init__(self):
        _at_least("sample", self, steps=1, guidance=0)
        _at_most("sample", self, steps=10_000, guidance=1e6)
        _seed("sample", self)
        if not (isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"sample.fps is {self.fps}; it must be a finite number above 0")
        if not 0.01 <= self.fps <= 1000:
            raise ValueError(f"sample.fps is {self.fps}; it must be from 0.01 to 1000: no video file holds another")


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """Which steps are looked at closely, and by what. It changes no bit of what is trained."""

    steps: str = ""
    """First and last profiled step, both included, such as 10:13; empty: none."""
    tool: ProfileTool = "torch"
    """torch: traces in the run folder's profile/, one a rank; others: the run prints the command line that starts it
    under that tool, and marks steps and parts for it."""
    memory: bool = True
    """With torch: every allocation as well, and on a GPU a snapshot that says who made it."""

    def __post_init__(self):
        _choice("profile", self, tool=ProfileTool)
        wanted = self.wanted
        if self.steps and (not wanted or wanted[0] < 1):
            raise ValueError(
                f"profile.steps is {shown(self.steps)}; it must be the first and the last step, FIRST:LAST, the first "
                "at least 1 and the last no smaller, such as 10:13"
            )

    @property
    def wanted(self) -> range:
        """The steps; empty: none."""
        match = fullmatch(r"([0-9]{1,18}):([0-9]{1,18})", self.steps)
        return range(int(match[1]), int(match[2]) + 1) if match else range(0)

    def check(self, max_steps: int) -> None:
        """Raises ValueError where the run ends before the last of the steps."""
        if self.wanted and self.wanted[-1] > max_steps:
            raise ValueError(
                f"profile.steps is {self.steps}, but trainer.max_steps is {max_steps}: choose steps up to that, or "
                "train for longer"
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run, whole: what a recipe returns, the command line changes and config.yaml keeps."""

    recipe: Annotated[str, Suppress]
    """The recipe this configuration started from; no option changes it."""
    run: RunFolderConfig
    model: ModelConfig
    flow: FlowConfig
    data: DataConfig
    parallel: ParallelConfig
    optimizer: OptimizerConfig
    trainer: TrainerConfig
    kernels: KernelConfig
    sample: SampleConfig
    profile: ProfileConfig = field(default_factory=ProfileConfig)

    def check_layout(self) -> None:
        """Raises ValueError where the layout cannot divide the model, whatever the world."""
        model, parallel = self.model, self.parallel
        parallel.check_model(layers=model.layers, heads=model.heads, width=model.width, mlp_width=model.mlp_width)
        if self.trainer.validate_every and parallel.virtual_pipeline > 1 and PROBE_LEVELS % parallel.pipeline:
            raise ValueError(
                f"parallel.pipeline is {parallel.pipeline}; with virtual stages validation, {PROBE_LEVELS} noise "
                "levels at once, needs one that divides them: set trainer.validate_every to 0, or choose 2, 4 or 8"
            )

    def micro_batches(self, world: int) -> int:
        """Forward passes each process accumulates in one step, in a world of `world` processes.

        Raises:
            ValueError: the layout does not fit the world, or the global batch does not split evenly.
        """
        data_size = self.parallel.data_size(world)
        self.check_layout()
        together = self.trainer.micro_batch * data_size
        if self.trainer.global_batch % together:
            raise ValueError(
                f"trainer.global_batch is {self.trainer.global_batch}; {data_size} data-parallel ranks with "
                f"trainer.micro_batch {self.trainer.micro_batch} take {together} samples at once, which does "
                "not divide it: lower micro_batch, or choose a global batch that is a multiple"
            )
        count = self.trainer.global_batch // together
        if self.parallel.virtual_pipeline > 1 and count % self.parallel.pipeline:
            raise ValueError(
                f"a step has {count} microbatches (trainer.global_batch {self.trainer.global_batch} over {data_size} "
                f"data-parallel ranks, {self.trainer.micro_batch} at once); with parallel.virtual_pipeline they must "
                f"be a multiple of parallel.pipeline, {self.parallel.pipeline}: change batch or layout"
            )
        return count


def _at_least(section: str, config: Any, **lowest: float) -> None:
    for name, least in lowest.items():
        value = getattr(config, name)
        if isinstance(value, int) and value >= 2**63:
            raise ValueError(f"{section}.{name} is {shown(value)}; it must be below 2^63")
        if not (isfinite(value) and value >= least):
            raise ValueError(f"{section}.{name} is {value}; it must be a finite number of at least {least}")


def _at_most(section: str, config: Any, **highest: float) -> None:
    for name, most in highest.items():
        if getattr(config, name) > most:
            raise ValueError(f"{section}.{name} is {getattr(config, name)}; it must be at most {most}")


def _seed(section: str, config: Any) -> None:
    if not 0 <= config.seed < 2**63:
        raise ValueError(f"{section}.seed is {shown(config.seed)}; it must be from 0 to 2^63 - 1")


def _path(section: str, config: Any) -> None:
    if "\0" in config.folder or len(config.folder) > LONGEST_PATH:
        raise ValueError(
            f"{section}.folder is {shown(config.folder)}; it must be a path without NUL, of at most {LONGEST_PATH} "
            "characters"
        )


def _choice(section: str, config: Any, **kinds: Any) -> None:
    for name, kind in kinds.items():
        if getattr(config, name) not in get_args(kind):
            allowed = ", ".join(get_args(kind))
            raise ValueError(f"{section}.{name} is {getattr(config, name)!r}; choose one of {allowed}")
