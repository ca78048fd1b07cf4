"""From a trained run, or a folder of published weights, and a prompt to a video.

A run brings its codec, its text encoder's identity and its clip size with every checkpoint; published weights bring
none of them, so they must be named.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from ..kernels.registry import KernelSet, choose, choose_like
from ..model import published, weights
from ..model.clip_size import PIXELS_PER_LATENT, latent_size
from ..model.codecs import load_codec
from ..model.codecs.codec import Codec
from ..model.config import PATCH, FlowConfig, ModelConfig, Position
from ..model.flow import Caption, Guidance, initial_noise, sample
from ..model.mmdit import MMDiT, build
from ..model.text import load_text
from ..model.text.text import TextEncoder
from ..parallel import checkpoint
from ..parallel.checkpoint import VerifiedTensors
from ..parallel.config import ParallelConfig
from ..parallel.mesh import Mesh, build_mesh
from . import config_yaml
from .checkpoints import FACTS_FILE, CheckpointFacts, CheckpointFolder, read_facts, tensor_digests
from .config import RunConfig, SampleConfig
from .data.manifest import CODEC_FOLDER
from .encoders import open_codec, open_text
from .session import DTYPES

WeightsKind = Literal["ema", "raw"]


@dataclass(frozen=True, kw_only=True)
class SampleSource:
    """Everything a sample is made with."""

    model: MMDiT
    flow: FlowConfig
    codec: Codec
    text: TextEncoder
    clip_size: tuple[int, int, int]
    """Frames, height, width in pixels."""

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        return self.model.config.channels, *latent_size(*self.clip_size)


@dataclass(frozen=True, kw_only=True)
class PublishedOptions:
    """What published weights do not say themselves."""

    codec: str | None = None
    """Folder of a codec, for example a shard folder's `codec`."""
    text: str | None = None
    """Kind of text encoder, for example minilm."""
    position: Position | None = None
    """Where the folder's config.json names none."""
    clip_size: tuple[int, int, int] = (125, 432, 768)
    """Frames, height, width in pixels; ContentV's own by default."""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint of a run, read but for its tensors."""

    folder: Path
    facts: CheckpointFacts
    config: RunConfig

    def verify(self, mesh: Mesh) -> VerifiedTensors:
        """Its tensors, every file of them compared with its digest; ValueError names the one that differs."""
        return checkpoint.verify(self.folder, tensor_digests(self.folder), mesh)


def find_checkpoint(run_or_checkpoint: str | Path) -> Checkpoint | None:
    """The checkpoint itself, or a run's last one; None if the folder is neither."""
    folder = Path(run_or_checkpoint)
    if not (folder / FACTS_FILE).is_file():
        folder = CheckpointFolder(folder).latest()
        if folder is None:
            return None
    return open_checkpoint(folder)


def open_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`; ValueError names what is missing or damaged."""
    return Checkpoint(folder, read_facts(folder), config_yaml.load(folder / config_yaml.CONFIG_FILE))


def open_run(found: Checkpoint, kind: WeightsKind) -> SampleSource:
    """What a run samples with. ValueError if text encoder or codec are not those it was trained with."""
    # First of all, since everything else takes seconds.
    mesh = build_mesh(ParallelConfig())
    stored = found.verify(mesh)
    try:
        check_clip_size(found.facts.clip_size)
    except ValueError as error:
        raise ValueError(f"{found.folder / FACTS_FILE}: clip_size: {error}") from None
    text = load_text(found.facts.text.kind, found.facts.text.tokens)
    if text.identity != found.facts.text.identity:
        raise ValueError(
            f"{found.folder} was trained with text encoder {found.facts.text.kind} {found.facts.text.identity[:12]}, "
            f"but the one installed is {text.identity[:12]}: install the former's package version"
        )
    codec = load_codec(found.folder / CODEC_FOLDER)
    if codec.identity != found.facts.codec_identity:
        raise ValueError(
            f"{found.folder} was trained with codec {found.facts.codec_identity[:12]}, but its folder {CODEC_FOLDER} "
            f"holds {codec.identity[:12]}: restore it"
        )
    kernels = choose_like(mesh.device.type, found.facts.kernels, dtype=DTYPES[found.config.trainer.precision])
    model = load_model(found, stored, mesh, kernels, kind)
    return SampleSource(model=model, flow=found.config.flow, codec=codec, text=text, clip_size=found.facts.clip_size)


def load_model(found: Checkpoint, stored: VerifiedTensors, mesh: Mesh, kernels: KernelSet, kind: WeightsKind) -> MMDiT:
    """The checkpoint's model in evaluation, with its averaged or its raw weights."""
    model = build(found.config.model, mesh, kernels, dtype=DTYPES[found.config.trainer.precision])
    checkpoint.load_weights(stored, model, averaged=kind == "ema")
    return model.requires_grad_(False)


def untrained_model(config: RunConfig, mesh: Mesh, kernels: KernelSet) -> MMDiT:
    """The model as the run's first step found it."""
    model = build(config.model, mesh, kernels, dtype=DTYPES[config.trainer.precision])
    weights.initialise(model, config.model, config.trainer.seed)
    return model.requires_grad_(False)


def open_published(folder: str | Path, options: PublishedOptions, flow: FlowConfig) -> SampleSource:
    """What published weights sample with. ValueError if codec or text encoder are not named or do not fit."""
    if options.codec is None or options.text is None:
        raise ValueError(
            f"{folder} holds published weights, which say nothing of codec and text encoder: give --codec FOLDER and "
            "--text KIND (a run's folder brings both)"
        )
    check_clip_size(options.clip_size)
    opened = published.open_folder(folder, options.position)
    text = open_text(options.text)
    _check_widths(folder, opened.config, text)
    codec = open_codec(options.codec)
    if codec.channels != opened.config.channels:
        raise ValueError(f"{options.codec} has {codec.channels} channels, but {folder} takes {opened.config.channels}")
    mesh = build_mesh(ParallelConfig())
    model = build(opened.config, mesh, choose(mesh.device.type))
    weights.fill(model, opened.config, opened.tensor)
    return SampleSource(
        model=model.requires_grad_(False), flow=flow, codec=codec, text=text, clip_size=options.clip_size
    )


@torch.no_grad()
def sample_latents(
    source: SampleSource,
    prompts: Sequence[str],
    config: SampleConfig,
    negative: str = "",
    progress: Callable[[int], None] = lambda _done: None,
) -> torch.Tensor:
    """Latents [prompts, C, F, Y, X], fp32. Prompt i's noise depends on (config.seed, i) alone."""
    device = source.model.mesh.device
    tokens_BTW, pooled_BW = source.text.encode([*prompts, negative])
    count = len(prompts)
    guidance = Guidance(
        prompt=Caption(tokens_BTW[:count].to(device), pooled_BW[:count].to(device)),
        negative=Caption(
            tokens_BTW[count:].expand(count, -1, -1).to(device), pooled_BW[count:].expand(count, -1).to(device)
        ),
        scale=config.guidance,
    )
    noise_BCFYX = initial_noise(source.latent_shape, count, config.seed, device)
    return sample(source.model.velocity, noise_BCFYX, guidance, source.flow, config.steps, progress)


def check_clip_size(clip_size: tuple[int, int, int]) -> None:
    """ValueError for a size in pixels that no codec, or no patch of 2 x 2 latents, can fill."""
    _, rows, columns = latent_size(*clip_size)
    if rows % PATCH or columns % PATCH:
        _, height, width = clip_size
        raise ValueError(
            f"a clip is {height} x {width} pixels (height x width); latents in patches of {PATCH} x {PATCH} need "
            f"multiples of {PATCH * PIXELS_PER_LATENT}: choose the nearest"
        )


def _check_widths(folder: str | Path, config: ModelConfig, text: TextEncoder) -> None:
    for name, wanted, found in (
        ("text tokens", config.text_width, text.width),
        ("pooled text", config.pooled_width, text.pooled_width),
    ):
        if wanted != found:
            raise ValueError(
                f"{folder} takes {name} {wanted} wide, but text encoder {text.kind} gives {found}: choose the encoder "
                "these weights were trained with"
            )
