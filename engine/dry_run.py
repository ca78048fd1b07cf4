"""A step of every kind of rank of a world that is not there: its shapes, its memory, and what it sends.

The run's own model, schedule and optimizer on tensors that have shapes and no values, in torch's fake process group: a
wrong layout shows here, in a minute on a laptop, instead of on 256 devices.
"""

import time
from collections import Counter
from dataclasses import dataclass, replace

import torch

from ..kernels.registry import KernelSet, choose
from ..model.config import ModelConfig
from ..model.flow import Caption, Clips, FlowMatching
from ..model.stages import stages
from ..model.volume import Place, StepShape, Volume, count_volume
from ..parallel.config import divide
from ..parallel.mesh import Mesh, build_mesh
from ..parallel.rehearsal import Rehearsal, imagined_world
from .checkpoints import CheckpointFolder
from .config import RunConfig
from .hardware import hardware_of
from .live_memory import LiveMemory
from .loading import RepeatedBatch
from .planner import Shape
from .planner.memory import StepMemory
from .session import DTYPES, Training, build_training
from .trainer import make_gradients


@dataclass(frozen=True, kw_only=True)
class Role:
    """Ranks that do the same work: they differ in their samples, or in which heads or rows of a tensor they hold."""

    rank: int
    """The first of them."""
    ranks: int
    """How many there are."""
    place: Place
    blocks: int
    video_tokens: int
    """Of a sample, this rank's context share."""
    text_tokens: int


@dataclass(frozen=True, kw_only=True)
class RehearsedRole:
    """What one rank of a role held and sent. Bytes."""

    role: Role
    held_bytes: int
    """Weights, gradients, masters, moments and average, between steps."""
    peak_bytes: int
    """Most at any moment of a step; what a kernel has for itself meanwhile is not seen."""
    planned_bytes: int
    """The same as the planner says for the first rank of this stage."""
    sent_bytes: dict[str, int]
    """In a step, by axis."""
    expected_bytes: dict[str, int]
    """The same by the planner's closed form (model/volume.py)."""
    seconds: float
    """What the rehearsal took."""

    @property
    def memory_difference(self) -> float:
        """Relative, planner to rehearsal."""
        return abs(self.planned_bytes - self.peak_bytes) / self.peak_bytes

    @property
    def volume_difference(self) -> float:
        """The same of what is sent, on the axis where it is largest."""
        pairs = ((self.expected_bytes[axis], sent) for axis, sent in self.sent_bytes.items())
        return max(
            (abs(expected - sent) / max(expected, sent) for expected, sent in pairs if expected or sent), default=0.0
        )


def roles(config: RunConfig, world: int, shape: Shape) -> list[Role]:
    """Every kind of rank there is. ValueError where the layout fits neither world, batch nor model.

    Tensor ranks hold parts of equal shape (heads that do not divide are filled up), so one stands for all.
    """
    config.micro_batches(world)
    layout = config.parallel
    counts = list(
        zip(divide(shape.video_tokens, layout.context), divide(shape.text_tokens, layout.context), strict=True)
    )
    runs = stages(config.model, layout.stages)
    found = []
    for pipeline in range(layout.pipeline):
        held = [runs[chunk * layout.pipeline + pipeline] for chunk in range(layout.virtual_pipeline)]
        for (video, text), alike in Counter(counts).items():
            context = counts.index((video, text))
            data = world // layout.model_ranks
            found.append(
                Role(
                    rank=layout.tensor * (context + layout.context * data * pipeline),
                    ranks=alike * layout.tensor * data,
                    place=Place(context=context, pipeline=pipeline),
                    blocks=sum(len(run.blocks) for run in held),
                    video_tokens=video,
                    text_tokens=text,
                )
            )
    return found


def rehearsed_microbatches(config: RunConfig, world: int) -> int:
    """How many of a step's microbatches are rehearsed: as many as fill the pipeline; the others repeat them."""
    layout = config.parallel
    enough = layout.pipeline * (2 if layout.virtual_pipeline > 1 else 1)
    return min(config.micro_batches(world), enough)


def rehearse(config: RunConfig, world: int, shape: Shape, role: Role) -> RehearsedRole:
    """Builds that rank and takes a step with it."""
    started = time.perf_counter()
    count = rehearsed_microbatches(config, world)
    config = shortened(config, world, count)
    with imagined_world(role.rank, world):
        mesh = build_mesh(config.parallel)
        with Rehearsal() as rehearsal:
            held, peak = step_memory(config, mesh, shape)
        sent = rehearsal.by_axis(mesh)
    work = StepShape(
        video_tokens=shape.video_tokens,
        text_tokens=shape.text_tokens,
        samples=config.trainer.micro_batch,
        microbatches=count,
        data=config.parallel.data_size(world),
        value_bytes=DTYPES[config.trainer.precision].itemsize,
        recompute=config.trainer.recompute,
        recomputed_blocks=config.trainer.recompute_blocks,
    )
    return RehearsedRole(
        role=role,
        held_bytes=held,
        peak_bytes=peak,
        planned_bytes=planned(config, world, shape, role.place.pipeline),
        sent_bytes={axis: round(size) for axis, size in sent.items() if axis != "world"},
        expected_bytes=by_axis(count_volume(config.model, config.parallel, role.place, work)),
        seconds=time.perf_counter() - started,
    )


def step_memory(config: RunConfig, mesh: Mesh, shape: Shape) -> tuple[int, int]:
    """Bytes of tensors that this rank holds between steps, and at most during one; rehearsed or in earnest.

    A first step sends what all later ones do: megatron gathers the weights before it, too.
    """
    dtype, repeatable = DTYPES[config.trainer.precision], config.kernels.repeatable
    kernels = choose(mesh.device.type, config.kernels.wishes(), dtype=dtype, repeatable=repeatable)
    with LiveMemory() as memory:
        training = imagined_training(config, mesh, kernels, shape)
        memory.peak = held = memory.bytes
        make_gradients(training, 1, [])
        training.optimizer.update(1, config.optimizer.learning_rate, training.optimizer.gradient_norm())
    return held, memory.peak


def planned(config: RunConfig, world: int, shape: Shape, stage: int) -> int:
    """Bytes by the planner, on a device with memory of its own, without attention's workspace."""
    memory = StepMemory(config=config, world=world, hardware=hardware_of("h100-80g"), shape=shape).of_rank(stage)
    return memory.total - memory.attention_workspace


def by_axis(volume: Volume) -> dict[str, int]:
    """As messages are counted: sequence parallelism sends over the tensor group."""
    sent = dict(vars(volume))
    sent["tensor"] += sent.pop("sequence")
    return sent


def shortened(config: RunConfig, world: int, microbatches: int) -> RunConfig:
    """The same run with so many microbatches a step."""
    batch = microbatches * config.trainer.micro_batch * config.parallel.data_size(world)
    return replace(config, trainer=replace(config.trainer, global_batch=batch))


def imagined_training(config: RunConfig, mesh: Mesh, kernels: KernelSet, shape: Shape) -> Training:
    """The rank's model and optimizer, and batches of that shape. In a `Rehearsal` it costs no memory."""
    model, optimizer = build_training(config, mesh, kernels)
    count = config.micro_batches(mesh.world_size)
    clips = imagined_clips(config.model, config.trainer.micro_batch, shape)
    empty = Caption(clips.caption.tokens_BTW[0], clips.caption.pooled_BW[0])
    return Training(
        config=config,
        mesh=mesh,
        kernels=kernels,
        loader=RepeatedBatch(clips, count),
        flow=FlowMatching(config.flow, kernels, config.trainer.seed, empty),
        model=model,
        optimizer=optimizer,
        checkpoints=CheckpointFolder(config.run.folder),
        first_step=0,
        first_sample=0,
        watch=mesh.watch(),
    )


def imagined_clips(model: ModelConfig, samples: int, shape: Shape) -> Clips:
    """Shapes and dtypes of what the shards hold, values unset."""
    return Clips(
        latents_BCFYX=torch.empty(samples, model.channels, shape.frames, shape.rows, shape.columns),
        caption=Caption(
            torch.empty(samples, shape.text_tokens, model.text_width), torch.empty(samples, model.pooled_width)
        ),
        sample_B=torch.empty(samples, dtype=torch.int64),
    )
