"""A run's figures, recomputed from its checkpoint, its data and the evidence of its resume."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..kernels.registry import choose_like
from ..parallel.checkpoint import VerifiedTensors, plain_tensors, verify
from ..parallel.config import ParallelConfig
from ..parallel.mesh import Mesh, build_mesh
from .checkpoints import CheckpointFolder, check_data, tensor_digests
from .data.encode import mean_codec_psnr
from .data.manifest import Bucket
from .data.shards import ShardDataset
from .metrics import read_metrics
from .probe import directly, probe_loss, same_bucket_batches
from .resume_evidence import REPEATED_STEPS, RESUMED, UNDISTURBED
from .run_files import METRICS_FILE
from .sampling import (
    Checkpoint,
    WeightsKind,
    find_checkpoint,
    load_model,
    open_run,
    sample_latents,
    untrained_model,
)
from .session import DTYPES

ProgressFactory = Callable[[str, int, str], Callable[[int], None]]
"""(title, total, unit) -> function taking how many are done."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The figures of summary.json that a checkpoint can give, and the samples they rest on."""

    probe_ratio: float
    """Probe loss over its value at step 0, training windows."""
    held_out_ratio: float | None
    """The same on held-out windows. None: there are none."""
    captions: int
    captions_matched: int
    """Captions whose sample lies nearest (L2 of latents) to a training window of that very caption."""
    resume_bit_equal: bool | None
    """None: the run holds no evidence, since it was never stopped and resumed by `contentv quickstart`."""
    codec_psnr_db: float | None
    """None: encoding measured none."""
    samples: dict[str, torch.Tensor]
    """Caption -> pixels_3FYX."""

    def figures(self) -> dict[str, float | int | bool | None]:
        return {name: value for name, value in vars(self).items() if name != "samples"}


def evaluate(run_folder: str | Path, kind: WeightsKind, progress: ProgressFactory) -> Evaluation:
    """Everything, from the last checkpoint of a run. ValueError if there is none, or its data is gone."""
    run_folder = Path(run_folder)
    found = find_checkpoint(run_folder)
    if found is None:
        raise ValueError(f"{run_folder} holds no checkpoint; train first, for example: contentv train quickstart")
    train = ShardDataset(found.config.data.folder)
    splits = {split: ShardDataset(train.folder, split) for split in train.manifest.counts()}
    check_data(found.folder, found.facts, train.folder, train.codec_identity, train.manifest.text)
    # What is sampled has the size of one bucket, so only that one's windows can be near.
    size = Bucket(*found.facts.clip_size)
    if size not in train.buckets:
        there = ", ".join(map(str, train.buckets))
        raise ValueError(f"{found.folder} samples {size} pixels, but {train.folder} holds {there}: encode those again")
    codec_psnr_db = _codec_psnr(train)
    mesh = build_mesh(ParallelConfig())
    resume_bit_equal = resume_is_bit_equal(run_folder, mesh)
    source = open_run(found, kind)
    trained, untrained = _probe(found, kind, mesh, splits, progress)

    windows = train.read(list(train.samples()[size]))
    captions = sorted(set(windows.captions))
    latents = sample_latents(
        source, captions, found.config.sample, progress=progress("sampling", found.config.sample.steps, "step")
    )
    distances = torch.cdist(latents.flatten(1).cpu(), windows.latents_BCFYX.flatten(1))
    nearest = [windows.captions[window] for window in distances.argmin(dim=1).tolist()]
    return Evaluation(
        probe_ratio=trained["train"] / untrained["train"],
        held_out_ratio=trained["held_out"] / untrained["held_out"] if "held_out" in trained else None,
        captions=len(captions),
        captions_matched=sum(near == caption for near, caption in zip(nearest, captions, strict=True)),
        resume_bit_equal=resume_bit_equal,
        codec_psnr_db=codec_psnr_db,
        samples=dict(zip(captions, source.codec.decode(latents).cpu(), strict=True)),
    )


def resume_is_bit_equal(run_folder: Path, mesh: Mesh) -> bool | None:
    """Whether the resumed process repeated the undisturbed one's metrics and tensors bit for bit.

    Compares the REPEATED_STEPS steps before the undisturbed process was killed, all of them after the checkpoint that
    was resumed from, and every tensor of both checkpoints at the last of them: weights, masters, moments, average. A
    step or a checkpoint that one of the two lacks counts as a difference. None if no process was kept undisturbed.
    """
    undisturbed, resumed = CheckpointFolder(run_folder / UNDISTURBED), CheckpointFolder(run_folder / RESUMED)
    if not undisturbed.steps():
        return None
    last = undisturbed.steps()[-1]
    if last not in resumed.steps():
        return False
    ours, theirs = _losses(run_folder), _losses(run_folder / UNDISTURBED)
    compared = range(last - REPEATED_STEPS + 1, last + 1)
    if any(step not in ours or step not in theirs or ours[step] != theirs[step] for step in compared):
        return False
    one, other = (plain_tensors(_verified(folder.path(last), mesh), mesh) for folder in (undisturbed, resumed))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _codec_psnr(dataset: ShardDataset) -> float | None:
    try:
        return mean_codec_psnr(dataset.folder, dataset.split)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{dataset.folder}: a sample says nothing usable of its codec_psnr_db ({error}): encode the data again"
        ) from error


def _verified(folder: Path, mesh: Mesh) -> VerifiedTensors:
    return verify(folder, tensor_digests(folder), mesh)


def _losses(folder: Path) -> dict[int, tuple[float, float, float]]:
    lines = read_metrics(folder / METRICS_FILE)
    return {
        line["step"]: tuple(line.get(key) for key in ("loss", "grad_norm", "lr")) for line in lines if "loss" in line
    }


def _probe(found: Checkpoint, kind: WeightsKind, mesh: Mesh, splits: dict[str, ShardDataset], progress):
    """Probe losses, by split, of the trained and of the untrained model."""
    stored = found.verify(mesh)
    kernels = choose_like(mesh.device.type, found.facts.kernels, dtype=DTYPES[found.config.trainer.precision])
    batch = found.config.trainer.micro_batch
    results = []
    for title, model in (
        ("probing the trained model", load_model(found, stored, mesh, kernels, kind)),
        ("probing the untrained model", untrained_model(found.config, mesh, kernels)),
    ):
        losses = {}
        for split, dataset in splits.items():
            ids = _ids(dataset)
            show = progress(f"{title}, {split}", len(same_bucket_batches(dataset, ids, batch)), "batch")
            loss = probe_loss(directly(model), dataset, ids, mesh, kernels, batch=batch, progress=show)
            losses[split] = float(loss)
        results.append(losses)
    return results


def _ids(dataset: ShardDataset) -> list[int]:
    return sorted(sample for samples in dataset.samples().values() for sample in samples)
