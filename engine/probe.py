"""The probe loss: how well a model knows a set of windows, free of the training's random draws.

Unweighted velocity MSE over every window x 8 mid-point noise levels of (0, 1), with noise that never changes.
"""

from collections.abc import Callable
from math import prod

import torch

from ..kernels.registry import KernelSet
from ..model.embeddings import token_grid
from ..model.flow import Clips, Question, squared_error
from ..parallel.mesh import Mesh
from ..parallel.training import Step
from .config import PROBE_LEVELS
from .data.shards import ShardDataset
from .loading import to_device

LEVELS = tuple((index + 0.5) / PROBE_LEVELS for index in range(PROBE_LEVELS))

SEED = 0x50524F4245
"""Of the probe's noise, apart from any run's: the same window and level meet the same noise in every run."""


Level = tuple[Clips, int]
"""Some windows, and which of LEVELS they are asked at."""

Runner = Callable[[Step, list[Level]], torch.Tensor]
"""Takes a forward step over all levels of some windows: their mean loss, or this rank's part of it, 0-D."""


@torch.no_grad()
def probe_loss(
    run: Runner,
    dataset: ShardDataset,
    sample_ids: list[int],
    mesh: Mesh,
    kernels: KernelSet,
    *,
    batch: int,
    progress: Callable[[int], None] = lambda _done: None,
) -> torch.Tensor:
    """0-D fp64 mean over `sample_ids` x LEVELS, each data-parallel rank taking its share. No caption is dropped."""
    step = probe_step(mesh, kernels)
    total = torch.zeros((), dtype=torch.float64, device=mesh.device)
    batches = same_bucket_batches(dataset, sample_ids, batch)
    for done, ids in enumerate(batches):
        if done % mesh.data_size == mesh.data_rank:
            clips = to_device(dataset.read(ids), mesh.device)
            total += len(ids) * run(step, [(clips, level) for level in range(len(LEVELS))]).double()
        progress(done + 1)
    return mesh.sum_of_parts(total) / len(sample_ids)


def probe_step(mesh: Mesh, kernels: KernelSet) -> Step:
    def step(model, at: Level):
        clips, level = at
        sigma_B = torch.full((len(clips.sample_B),), LEVELS[level], device=mesh.device)
        x_t, noise = kernels.flow_noise(clips.latents_BCFYX, sigma_B, clips.sample_B, step=level, seed=SEED)
        question = Question(x_t, sigma_B, clips.caption, noise)
        first_token = mesh.sharing.share(prod(token_grid(clips.latents_BCFYX))).own.start
        return question.put_to(model), lambda velocity_SBP: squared_error(
            kernels, velocity_SBP, clips, question, first_token
        ).mean()

    return step


def directly(model: torch.nn.Module) -> Runner:
    """Runs the levels through a whole model, in a world of one."""

    def run(step: Step, levels: list[Level]) -> torch.Tensor:
        outputs = (step(model, at) for at in levels)
        return torch.stack([loss(velocity) for velocity, loss in outputs]).mean()

    return run


def same_bucket_batches(dataset: ShardDataset, sample_ids: list[int], batch: int) -> list[list[int]]:
    """The ids in batches of at most `batch`, each of one bucket."""
    wanted = set(sample_ids)
    batches = []
    for ids in dataset.samples().values():
        chosen = [sample for sample in ids if sample in wanted]
        batches += [chosen[start : start + batch] for start in range(0, len(chosen), batch)]
    return batches
