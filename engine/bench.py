"""How long a training step takes and how much memory it holds: the very step that `train` runs, on one repeated batch.

fp32, torch's default matmul precision, no recomputation, no average of the weights; AdamW with learning rate 1e-4,
betas 0.9 and 0.999, epsilon 1e-8, decay 0.01 on every parameter, gradients clipped to norm 1.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch._dynamo.utils import counters

from ..kernels.config import KernelConfig
from ..kernels.device import name_of, peak_memory_mib, repeat_bits, wait_for
from ..kernels.registry import KernelSet, choose
from ..model import published
from ..model.config import FlowConfig, ModelConfig, Position
from ..model.cost import count_operations, count_parameters
from ..model.flow import Caption, Clips, FlowMatching, Objective, Question, squared_error
from ..parallel.config import ParallelConfig
from ..parallel.layers import leave_buffers
from ..parallel.mesh import Mesh, build_mesh
from ..parallel.training import DataParallel
from .checkpoints import CheckpointFolder
from .config import DataConfig, OptimizerConfig, RunConfig, RunFolderConfig, SampleConfig, TrainerConfig
from .hardware import Utilisation, peak_of
from .loading import RepeatedBatch
from .parity import read_golden
from .session import Training, build_training, set_weights
from .signals import StopSignals
from .trainer import take_step

WARM_UP = 2
"""Steps before the timed ones, on which memory is laid out and kernels are first called."""
SEED = 0


@dataclass(frozen=True, kw_only=True)
class StepBenchmark:
    """What is measured. Shapes may be None where a checkpoint or inputs bring them; given, they must agree."""

    steps: int
    """Timed ones."""
    model: ModelConfig | None = None
    latents: tuple[int, int, int] | None = None
    """Frames, rows and columns of the latents."""
    text_tokens: int | None = None
    checkpoint: Path | None = None
    """Folder of published weights to start from; None: drawn as `model.initialisation` says."""
    inputs: Path | None = None
    """File of inputs under the golden files' keys; None: random ones, with the noise that training draws."""
    position: Position | None = None
    """Where the checkpoint names none."""
    compile: bool = False
    """torch.compile for each block."""

    def __post_init__(self):
        assert self.model or self.checkpoint
        assert self.latents and self.text_tokens or self.inputs


@dataclass(frozen=True, kw_only=True)
class StepMeasurement:
    """What `contentv bench step --json` prints."""

    ms: float
    """Median milliseconds of the timed steps."""
    step_ms: list[float]
    """Each of them."""
    rss_mib: float
    """Largest resident memory of the process; on an accelerator that is the host's."""
    base_mib: float
    """Resident memory once everything is imported and nothing is built."""
    device_mib: float | None
    """Largest memory of the accelerator's allocator; None on a CPU."""
    parameters: int
    tflops: float
    mfu: float | None
    hfu: float | None
    device: str
    threads: int
    losses: list[float]
    """Of every step, those of the warm-up first."""
    graph_breaks: int | None
    """Places where torch.compile left its graphs, over all blocks; None where nothing was compiled."""


@dataclass(frozen=True)
class GivenPath:
    """The training loss at a noise level, with a noise and an x_t that are given: mean((v - (noise - x_0))^2)."""

    kernels: KernelSet
    sigma_B: torch.Tensor
    noise_BCFYX: torch.Tensor
    x_t_BCFYX: torch.Tensor

    def ask(self, clips: Clips, _step: int) -> Question:
        return Question(self.x_t_BCFYX, self.sigma_B, clips.caption, self.noise_BCFYX)

    def losses(
        self, velocity_SBP: torch.Tensor, clips: Clips, question: Question, first_token: int = 0
    ) -> torch.Tensor:
        return squared_error(self.kernels, velocity_SBP, clips, question, first_token)


def measure_step(wanted: StepBenchmark, turn: Callable[[], object] = lambda: None) -> StepMeasurement:
    """Runs the warm-up and the timed steps. ValueError for weights or inputs that do not fit the shapes asked for.

    `turn` is called before each step: it may wait until somebody else has done his.
    """
    mesh = build_mesh(ParallelConfig())
    repeat_bits(mesh.device, wanted=True)
    kernels = choose(mesh.device.type)
    base_mib = psutil.Process().memory_info().rss / 2**20
    training = prepare(wanted, mesh, kernels)
    if wanted.compile:
        compile_blocks(training.model)
    seconds, losses = [], []
    for step in range(1, WARM_UP + wanted.steps + 1):
        turn()
        started = time.perf_counter()
        result = take_step(training, step, StopSignals())
        wait_for(mesh.device)
        seconds.append(time.perf_counter() - started)
        losses.append(float(result.loss))
    median, config = statistics.median(seconds[WARM_UP:]), training.config
    operations = count_operations(
        config.model,
        video_tokens=result.video_tokens,
        text_tokens=result.text_tokens,
        batch=config.trainer.global_batch,
    )
    device = name_of(mesh.device)
    used = Utilisation.of(operations, seconds=median, devices=1, peak=peak_of(device, config.trainer.precision))
    return StepMeasurement(
        ms=1000 * median,
        step_ms=[1000 * each for each in seconds[WARM_UP:]],
        rss_mib=peak_memory_mib(torch.device("cpu")),
        base_mib=base_mib,
        device_mib=None if mesh.device.type == "cpu" else peak_memory_mib(mesh.device),
        parameters=count_parameters(config.model),
        **vars(used),
        device=device,
        threads=torch.get_num_threads(),
        losses=losses,
        graph_breaks=sum(counters["graph_break"].values()) if wanted.compile else None,
    )


def compile_blocks(model: DataParallel) -> None:
    """Each block is compiled when it is first called; torch counts from here on where it could not follow."""
    counters.clear()
    for module in model.modules:
        for block in module.blocks.values():
            leave_buffers(block)
            block.compile()


def prepare(wanted: StepBenchmark, mesh: Mesh, kernels: KernelSet) -> Training:
    """Weights and batch in place, ready for the first step."""
    source = published.open_folder(wanted.checkpoint, wanted.position) if wanted.checkpoint else None
    shape = _agreed(wanted, source.config) if source else wanted.model
    clips, flow = (given_inputs if wanted.inputs else random_inputs)(wanted, shape, mesh, kernels)
    config = bench_config(wanted, shape, len(clips.sample_B))
    model, optimizer = build_training(config, mesh, kernels, average=False)
    set_weights(model, optimizer, config, source and source.tensor)
    return Training(
        config=config,
        mesh=mesh,
        kernels=kernels,
        loader=RepeatedBatch(clips),
        flow=flow,
        model=model,
        optimizer=optimizer,
        checkpoints=CheckpointFolder(config.run.folder),
        first_step=0,
        first_sample=0,
        watch=mesh.watch(),
    )


def bench_config(wanted: StepBenchmark, model: ModelConfig, batch: int) -> RunConfig:
    """As a run's; its folders are never opened."""
    return RunConfig(
        recipe="bench",
        run=RunFolderConfig(folder="bench"),
        model=model,
        flow=FlowConfig(),
        data=DataConfig(folder="bench"),
        parallel=ParallelConfig(),
        optimizer=OptimizerConfig(
            learning_rate=1e-4, warmup_steps=0, schedule="constant", weight_decay=0.01, decay_biases_and_gains=True
        ),
        trainer=TrainerConfig(
            max_steps=WARM_UP + wanted.steps, global_batch=batch, micro_batch=batch, checkpoint_every=1, seed=SEED
        ),
        kernels=KernelConfig(),
        sample=SampleConfig(steps=1, guidance=1.0, fps=1.0),
    )


def random_inputs(wanted: StepBenchmark, model: ModelConfig, mesh: Mesh, kernels: KernelSet) -> tuple[Clips, Objective]:
    """One sample from a seed, and training's own draws of noise, noise level and dropped captions."""
    generator = torch.Generator().manual_seed(SEED)
    latents = torch.randn(1, model.channels, *wanted.latents, generator=generator)
    tokens = torch.randn(1, wanted.text_tokens, model.text_width, generator=generator)
    pooled = torch.randn(1, model.pooled_width, generator=generator)
    clips = _on_device(latents, tokens, pooled, mesh)
    empty = Caption(torch.zeros_like(clips.caption.tokens_BTW[0]), torch.zeros_like(clips.caption.pooled_BW[0]))
    return clips, FlowMatching(FlowConfig(), kernels, SEED, empty)


def given_inputs(wanted: StepBenchmark, model: ModelConfig, mesh: Mesh, kernels: KernelSet) -> tuple[Clips, Objective]:
    """The batch in a file: x0, noise, sigma, encoder_hidden_states, pooled_projections and, if it has one, x_t."""
    given = read_golden(wanted.inputs)
    for key, axes in (("x0", 5), ("encoder_hidden_states", 3)):
        if key not in given or given[key].dim() != axes:
            raise ValueError(f"{wanted.inputs}: {key}: expected a tensor of {axes} axes, as in a golden file")
    batch = len(given["x0"])
    latents = (batch, model.channels, *(wanted.latents or given["x0"].shape[2:]))
    text_tokens = wanted.text_tokens or given["encoder_hidden_states"].shape[1]
    shapes = {"x0": latents, "noise": latents, "sigma": (batch,)}
    shapes |= {"encoder_hidden_states": (batch, text_tokens, model.text_width)}
    shapes |= {"pooled_projections": (batch, model.pooled_width)} | ({"x_t": latents} if "x_t" in given else {})
    for key, shape in shapes.items():
        found = list(given[key].shape) if key in given else "no such tensor"
        if found != list(shape):
            raise ValueError(f"{wanted.inputs}: {key}: found {found}; expected {list(shape)}, by the model and options")
    given = {key: given[key].float().to(mesh.device) for key in shapes}
    sigma = given["sigma"].view(-1, 1, 1, 1, 1)
    x_t = given.get("x_t", (1 - sigma) * given["x0"] + sigma * given["noise"])
    clips = _on_device(given["x0"], given["encoder_hidden_states"], given["pooled_projections"], mesh)
    return clips, GivenPath(kernels, given["sigma"], given["noise"], x_t)


def _on_device(latents: torch.Tensor, tokens: torch.Tensor, pooled: torch.Tensor, mesh: Mesh) -> Clips:
    latents, tokens, pooled = (tensor.to(mesh.device) for tensor in (latents, tokens, pooled))
    return Clips(latents, Caption(tokens, pooled), torch.arange(len(latents), device=mesh.device))


def _agreed(wanted: StepBenchmark, found: ModelConfig) -> ModelConfig:
    """The checkpoint's shape, which the one asked for, if any, must be."""
    for name in ("layers", "heads", "head_width", "text_width", "pooled_width", "channels") if wanted.model else ():
        if getattr(wanted.model, name) != getattr(found, name):
            raise ValueError(
                f"--{name.replace('_', '-')} is {getattr(wanted.model, name)}, but the model in {wanted.checkpoint} "
                f"has {getattr(found, name)}: leave the model's sizes out, or give its own"
            )
    return found
