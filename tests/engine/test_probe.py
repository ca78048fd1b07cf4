"""The probe loss against a plain loop over windows and noise levels, whatever the batches."""

import pytest
import torch

from contentv.engine.data.manifest import Bucket
from contentv.engine.data.shard_writer import Sample, ShardWriter
from contentv.engine.data.shards import ShardDataset
from contentv.engine.probe import LEVELS, SEED, directly, probe_loss, same_bucket_batches
from contentv.kernels.philox import Stream, normal, words
from contentv.kernels.registry import choose
from contentv.model.mmdit import build
from contentv.model.weights import initialise
from contentv.parallel.config import ParallelConfig
from contentv.parallel.mesh import build_mesh
from tests.engine.small_run import MODEL, NoCodec, RandomText

BUCKETS = {Bucket(5, 32, 48): (16, 2, 4, 6), Bucket(1, 32, 32): (16, 1, 4, 4)}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Seven windows of one bucket and four of another, their ids interleaved."""
    writer, text = ShardWriter(tmp_path_factory.mktemp("two_buckets"), samples_per_shard=3), RandomText()
    generator = torch.Generator().manual_seed(3)
    for sample in range(11):
        bucket, shape = list(BUCKETS.items())[sample % 3 == 2 or sample == 10]
        tokens_BTW, pooled_BW = text.encode(["x" * sample])
        latents = torch.randn(shape, generator=generator)
        facts = {"caption": "x" * sample}
        writer.add(
            "train",
            bucket,
            Sample(sample=sample, latents_CFYX=latents, tokens_TW=tokens_BTW[0], pooled_W=pooled_BW[0], facts=facts),
        )
    writer.close(NoCodec(), text)
    return ShardDataset(writer.folder)


@pytest.fixture(scope="module")
def model():
    model = build(MODEL, build_mesh(ParallelConfig()), choose("cpu"))
    initialise(model, MODEL, 0)
    return model.requires_grad_(False)


def plain_loss(model, dataset, ids):
    """The mean over windows and levels, one at a time; every value of a window weighs alike."""
    losses = []
    for sample in ids:
        batch = dataset.read([sample])
        x0 = batch.latents_BCFYX
        for index in range(8):
            sigma = (index + 0.5) / 8
            first, second, _, _ = words(SEED, torch.arange(x0.numel()), sample, index, Stream.NOISE)
            noise = normal(first, second).view_as(x0)
            x_t = (1 - sigma) * x0 + sigma * noise
            velocity = model.velocity(x_t, torch.tensor([sigma]), batch.tokens_BTW, batch.pooled_BW)
            losses.append(float((velocity - (noise - x0)).double().square().mean()))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("ids", [range(11), (4, 2, 9)])
def test_it_is_the_mean_of_a_plain_loop(model, dataset, ids):
    expected = plain_loss(model, dataset, ids)
    for batch in (1, 3, 100):
        found = probe_loss(directly(model), dataset, list(ids), model.mesh, model.kernels, batch=batch)
        assert found.dtype == torch.float64 and found.dim() == 0
        assert float(found) == pytest.approx(expected, rel=1e-5)


def test_levels_are_the_mid_points_of_eighths():
    assert LEVELS == (0.0625, 0.1875, 0.3125, 0.4375, 0.5625, 0.6875, 0.8125, 0.9375)


def test_batches_share_a_bucket_and_lose_nothing(dataset):
    wanted = [10, 0, 1, 2, 5, 3, 4]
    batches = same_bucket_batches(dataset, wanted, batch=2)
    assert sorted(sample for ids in batches for sample in ids) == sorted(wanted)
    assert all(len(ids) <= 2 for ids in batches)
    for ids in batches:
        dataset.read(ids)  # refuses two buckets in one batch


def test_progress_counts_the_batches(model, dataset):
    seen = []
    probe_loss(directly(model), dataset, [0, 1, 3, 4, 6], model.mesh, model.kernels, batch=2, progress=seen.append)
    assert seen == [1, 2, 3]
