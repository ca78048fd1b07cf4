"""Everything a run trains with, put together from its configuration: mesh, kernels, data, model, optimizer."""

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from ..kernels.config import KernelConfig
from ..kernels.device import repeat_bits
from ..kernels.registry import KernelSet, choose, chosen_elsewhere
from ..model.codecs.codec import saved_identity
from ..model.flow import Caption, FlowMatching, Objective
from ..model.mmdit import build
from ..model.stages import stages
from ..model.weights import Source, drawn, joined
from ..parallel import checkpoint
from ..parallel.mesh import Mesh, build_mesh
from ..parallel.optimizer import AdamWSettings, Optimizer
from ..parallel.reading import file_sha256
from ..parallel.training import DataParallel, Shape
from ..parallel.watch import Watch
from . import config_yaml
from .checkpoints import FOLDER as CHECKPOINTS
from .checkpoints import CheckpointFacts, CheckpointFolder, check_resume, read_facts, tensor_digests, write_facts
from .config import OptimizerConfig, RunConfig
from .data.manifest import MANIFEST_FILE, Bucket
from .data.sampler import Sampler
from .data.shards import ShardDataset
from .loading import StepBatches, StepLoader
from .run_files import METRICS_FILE, OUTCOME_FILE, TENSORBOARD_FOLDER
from .saving import Saver
from .writable import check_folder, check_places

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Training:
    """What one step takes (`trainer.take_step`), wherever its batches come from."""

    config: RunConfig
    """Resolved: the kernels are named."""
    mesh: Mesh
    kernels: KernelSet
    loader: StepBatches
    flow: Objective
    model: DataParallel
    optimizer: Optimizer
    checkpoints: CheckpointFolder
    first_step: int
    """Updates already made, by the checkpoint it goes on from."""
    first_sample: int
    """Samples already consumed: the data cursor of that checkpoint."""
    watch: Watch

    def sample_index(self, step: int) -> int:
        """The global sample index at which update `step` begins."""
        return self.first_sample + (step - 1 - self.first_step) * self.config.trainer.global_batch

    def settle(self, *, wait: bool = False) -> None:
        """Nothing is saved here."""


@dataclass(frozen=True, kw_only=True)
class Session(Training):
    """A run that is ready to take its next step."""

    dataset: ShardDataset
    held_out: ShardDataset | None
    """What validation reads; None where there is none."""
    saver: Saver

    def save(self, step: int) -> None:
        """Begins the checkpoint of `step`; it is there once `settle` has waited for it. All ranks together."""
        facts = CheckpointFacts(
            step=step,
            sample_index=self.sample_index(step + 1),
            kernels=self.kernels.choices(),
            codec_identity=self.dataset.codec_identity,
            text=self.dataset.manifest.text,
            clip_size=usual_clip(self.dataset.buckets),
        )
        describe = partial(write_facts, facts=facts, config=self.config, codec_folder=self.dataset.codec_folder)
        self.saver.save(step, describe)

    def settle(self, *, wait: bool = False) -> None:
        """Publishes the checkpoint on its way if it is written, or waits until it is. All ranks together."""
        self.saver.settle(wait=wait)


def open_session(config: RunConfig) -> Session:
    """Builds everything; loads the last checkpoint where the run has one and may resume.

    Raises ValueError before any work for a layout, data, kernels or checkpoint that do not fit the configuration.
    """
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    mesh = build_mesh(config.parallel)
    repeat_bits(mesh.device, config.kernels.repeatable)
    config.micro_batches(mesh.world_size)
    check_folder("run.folder", config.run.folder)
    files = config_yaml.CONFIG_FILE, METRICS_FILE, OUTCOME_FILE
    check_places("run.folder", config.run.folder, files=files, folders=(CHECKPOINTS, TENSORBOARD_FOLDER))
    dataset = ShardDataset(config.data.folder)
    held_out = ShardDataset(config.data.folder, "held_out") if config.trainer.validate_every else None
    check_agreement(config, dataset, mesh)
    check_codec(dataset)
    check_widths(config, dataset)
    checkpoints = CheckpointFolder(config.run.folder)
    last, facts = _resumable(config, dataset, checkpoints)
    empty_caption = _empty_caption(dataset, mesh)
    stored = checkpoint.verify(last, tensor_digests(last), mesh) if last else None
    kernels = agreed_kernels(
        mesh,
        _wishes(config, facts, mesh),
        DTYPES[config.trainer.precision],
        repeatable=config.kernels.repeatable,
    )
    named = tuple(f"{op}={name}" for op, name in kernels.choices().items())
    config = replace(config, kernels=KernelConfig(wish=named, repeatable=config.kernels.repeatable))

    model, optimizer = build_training(config, mesh, kernels)
    if stored:
        checkpoint.load(stored, model, optimizer)
    else:
        set_weights(model, optimizer, config)
    return Session(
        config=config,
        mesh=mesh,
        kernels=kernels,
        dataset=dataset,
        held_out=held_out,
        loader=_loader(config, dataset, mesh),
        flow=FlowMatching(config.flow, kernels, config.trainer.seed, empty_caption),
        model=model,
        optimizer=optimizer,
        checkpoints=checkpoints,
        saver=Saver(
            model,
            optimizer,
            checkpoints,
            keep=config.trainer.keep_checkpoints,
            is_asynchronous=config.trainer.async_checkpoint,
        ),
        first_step=facts.step if facts else 0,
        first_sample=facts.sample_index if facts else 0,
        watch=mesh.watch(),
    )


def usual_clip(buckets: Mapping[Bucket, int]) -> Bucket:
    """What a sample is by default: of the longest buckets the one with most samples, so that no single clip decides."""
    return max(buckets, key=lambda bucket: (bucket.frames, buckets[bucket], bucket))


def build_training(
    config: RunConfig, mesh: Mesh, kernels: KernelSet, *, average: bool = True
) -> tuple[DataParallel, Optimizer]:
    """Model in its gradient buffers and optimizer around it, weights unset; `average` False: without their average."""
    shape = Shape(layers=config.model.layers, width=config.model.width, heads=config.model.heads)
    dtype = DTYPES[config.trainer.precision]
    runs = stages(config.model, config.parallel.stages)
    modules = [
        build(
            config.model,
            mesh,
            kernels,
            dtype=dtype,
            recomputed=config.trainer.recompute,
            recomputed_blocks=config.trainer.recompute_blocks,
            stage=runs[number],
        )
        for number in mesh.stages
    ]
    model = DataParallel(modules, mesh, shape, dtype)
    settings = adamw_settings(config.optimizer)
    return model, Optimizer(model, settings if average else replace(settings, ema_decay=None), kernels)


def set_weights(model: DataParallel, optimizer: Optimizer, config: RunConfig, source: Source | None = None) -> None:
    """What model and optimizer start from: published weights, or those drawn as the configuration says."""
    source = source or drawn(config.model, config.trainer.seed)
    for module in model.modules:
        optimizer.start_from(joined(module, config.model, source))


def adamw_settings(config: OptimizerConfig) -> AdamWSettings:
    return AdamWSettings(
        beta1=config.beta1,
        beta2=config.beta2,
        epsilon=config.epsilon,
        weight_decay=config.weight_decay,
        decay_biases_and_gains=config.decay_biases_and_gains,
        clip=config.clip,
        ema_decay=config.ema_decay,
    )


def agreed_kernels(
    mesh: Mesh, wishes: Mapping[str, str], dtype: torch.dtype = torch.float32, *, repeatable: bool = True
) -> KernelSet:
    """What rank 0 chooses, on every rank: one that lacks a library would compute other bits than the rest.

    Raises ValueError, on all ranks alike, if rank 0 can not choose or another rank can not run its choice.
    """

    def asked(wishes: Mapping[str, str]) -> tuple[dict[str, str] | None, str | None]:
        """The choice, or why there is none."""
        try:
            return choose(mesh.device.type, wishes, dtype=dtype, repeatable=repeatable).choices(), None
        except ValueError as error:
            return None, str(error)

    (chosen, refused), *_ = mesh.gathered(asked(wishes))
    if refused is None:
        everyone = mesh.gathered(asked(chosen))
        refused = next((f"rank {rank}: {reason}" for rank, (_, reason) in enumerate(everyone) if reason), None)
    if refused is not None:
        raise ValueError(refused)
    # Rank 0 chooses once more as it did, so that its table says what was ranked and what was wished for.
    return choose(mesh.device.type, wishes if mesh.rank == 0 else chosen, dtype=dtype, repeatable=repeatable)


def check_agreement(config: RunConfig, dataset: ShardDataset, mesh: Mesh) -> None:
    """Refuses, on all ranks alike, ranks that were started with another configuration or see other shards.

    Which samples of which bucket a step takes follows from both: ranks that agree here agree in every step, before any
    collective.
    """
    said = hashlib.sha256(config_yaml.to_yaml(config).encode()).hexdigest(), file_sha256(dataset.folder / MANIFEST_FILE)
    everyone = mesh.gathered(said)
    for name, values in zip(("configuration", "manifest of shards"), zip(*everyone, strict=True), strict=True):
        others = [rank for rank, value in enumerate(values) if value != values[0]]
        if others:
            raise ValueError(
                f"ranks {', '.join(map(str, others))} have another {name} than rank 0: start all ranks with the same "
                "command, and let all see the same files"
            )


def check_codec(dataset: ShardDataset) -> None:
    """Every checkpoint will bring the codec along: it has to be there, and to be the one that made the latents."""
    found = saved_identity(dataset.codec_folder)
    if found != dataset.codec_identity:
        raise ValueError(
            f"{dataset.codec_folder} holds codec {found[:12]}, but the latents beside it were made by "
            f"{dataset.codec_identity[:12]}: restore it or encode the data again"
        )


def check_widths(config: RunConfig, dataset: ShardDataset) -> None:
    """Refuses a model that takes other latents or captions than the shards hold."""
    text = dataset.manifest.text
    first = min(sample for samples in dataset.samples().values() for sample in samples)
    channels = dataset.read([first]).latents_BCFYX.shape[1]
    if config.model.channels != channels:
        raise ValueError(
            f"model.channels is {config.model.channels}, but the latents in {dataset.folder} have {channels}: set "
            f"--model.channels {channels}, or encode with another codec"
        )
    for name, wanted, found in (
        ("text_width", config.model.text_width, text.width),
        ("pooled_width", config.model.pooled_width, text.pooled_width),
    ):
        if wanted != found:
            raise ValueError(
                f"model.{name} is {wanted}, but the captions in {dataset.folder} were encoded {found} wide (by "
                f"{text.kind}): set --model.{name.replace('_', '-')} {found}, or encode with another text encoder"
            )


def _resumable(
    config: RunConfig, dataset: ShardDataset, checkpoints: CheckpointFolder
) -> tuple[Path | None, CheckpointFacts | None]:
    last = checkpoints.latest()
    if last is None:
        return None, None
    if not config.run.resume:
        raise ValueError(
            f"{checkpoints.folder} holds checkpoints up to {last.name}, and run.resume is False: choose another "
            "run.folder, or leave run.resume out to go on from there"
        )
    facts = read_facts(last)
    check_resume(last, facts, config, dataset.codec_identity, dataset.manifest.text)
    return last, facts


def _wishes(config: RunConfig, facts: CheckpointFacts | None, mesh: Mesh) -> Mapping[str, str]:
    """A resume keeps its kernels, unless it goes on another kind of device: then the configuration says anew."""
    if facts is not None and not chosen_elsewhere(mesh.device.type, facts.kernels):
        return facts.kernels
    if facts is not None and mesh.rank == 0:
        print(f"step {facts.step} was saved on another kind of device: its kernels are chosen anew", file=sys.stderr)
    return config.kernels.wishes()


def _loader(config: RunConfig, dataset: ShardDataset, mesh: Mesh) -> StepLoader:
    sampler = Sampler(dataset.samples(), batch=config.trainer.global_batch, seed=config.trainer.seed)
    return StepLoader(
        dataset,
        sampler,
        data_rank=mesh.data_rank,
        data_size=mesh.data_size,
        micro_batch=config.trainer.micro_batch,
    )


def _empty_caption(dataset: ShardDataset, mesh: Mesh) -> Caption:
    tokens_TW, pooled_W = dataset.empty_caption()
    return Caption(tokens_TW.to(mesh.device), pooled_W.to(mesh.device))
