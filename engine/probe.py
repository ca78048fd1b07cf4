"""The probe loss: how well a model knows a set of windows, free of the training's random draws.

Unweighted velocity MSE over every window x 8 mid-point noise levels of (0, 1), with noise that never changes.
"""

from collections.abc import Callable

import torch

from ..kernels.registry import KernelSet
from ..model.flow import VelocityModel
from ..parallel.mesh import Mesh
from .data.shards import ShardDataset
from .loading import to_device

LEVELS = tuple((index + 0.5) / 8 for index in range(8))

SEED = 0x50524F4245
"""Of the probe's noise, apart from any run's: the same window and level meet the same noise in every run."""


@torch.no_grad()
def probe_loss(
    model: VelocityModel,
    dataset: ShardDataset,
    sample_ids: list[int],
    mesh: Mesh,
    kernels: KernelSet,
    *,
    batch: int,
    progress: Callable[[int], None] = lambda _done: None,
) -> torch.Tensor:
    """0-D fp64 mean over `sample_ids` x LEVELS, each data-parallel rank taking its share. No caption is dropped."""
    total = torch.zeros(2, dtype=torch.float64, device=mesh.device)
    for done, ids in enumerate(same_bucket_batches(dataset, sample_ids, batch)):
        if done % mesh.data_size == mesh.data_rank:
            clips = to_device(dataset.read(ids), mesh.device)
            for index, level in enumerate(LEVELS):
                sigma_B = torch.full((len(ids),), level, device=mesh.device)
                x_t, noise = kernels.flow_noise(clips.latents_BCFYX, sigma_B, clips.sample_B, step=index, seed=SEED)
                velocity_SBP = model(x_t, sigma_B, clips.caption.tokens_BTW, clips.caption.pooled_BW)
                losses_B = kernels.flow_loss(velocity_SBP, clips.latents_BCFYX, noise, torch.ones_like(sigma_B))
                total += torch.stack([losses_B.double().sum(), losses_B.new_tensor(len(ids)).double()])
        progress(done + 1)
    total = mesh.sum_over_data(total)
    return total[0] / total[1]


def same_bucket_batches(dataset: ShardDataset, sample_ids: list[int], batch: int) -> list[list[int]]:
    """The ids in batches of at most `batch`, each of one bucket."""
    wanted = set(sample_ids)
    batches = []
    for ids in dataset.samples().values():
        chosen = [sample for sample in ids if sample in wanted]
        batches += [chosen[start : start + batch] for start in range(0, len(chosen), batch)]
    return batches
