"""Which clips a rank reads for a step: the ranks together read the global batch, in its order, once."""

import pytest
import torch

from contentv.engine.data.sampler import Sampler
from contentv.engine.data.shards import ShardDataset
from contentv.engine.loading import StepLoader

CPU = torch.device("cpu")


@pytest.mark.parametrize(("data_size", "micro_batch"), [(1, 1), (1, 3), (1, 6), (2, 3), (3, 2), (6, 1)])
def test_ranks_share_the_global_batch_in_order(shards, data_size, micro_batch):
    dataset = ShardDataset(shards)
    sampler = Sampler(dataset.samples(), batch=6, seed=4)
    for sample_index in (0, 6, 30):
        _, expected = sampler.batch(sample_index)
        read = []
        for rank in range(data_size):
            loader = StepLoader(dataset, sampler, data_rank=rank, data_size=data_size, micro_batch=micro_batch)
            pieces = list(loader.microbatches(sample_index, CPU))
            assert all(len(piece.sample_B) == micro_batch for piece in pieces)
            read += [sample for piece in pieces for sample in piece.sample_B.tolist()]
        assert read == expected == loader.global_ids(sample_index)


def test_clips_carry_what_the_shards_hold(shards):
    dataset = ShardDataset(shards)
    loader = StepLoader(dataset, Sampler(dataset.samples(), batch=4, seed=0), data_rank=1, data_size=2, micro_batch=2)
    (clips,) = loader.microbatches(8, CPU)
    batch = dataset.read(loader.global_ids(8)[2:])
    assert torch.equal(clips.latents_BCFYX, batch.latents_BCFYX)
    assert torch.equal(clips.caption.tokens_BTW, batch.tokens_BTW)
    assert torch.equal(clips.caption.pooled_BW, batch.pooled_BW)
