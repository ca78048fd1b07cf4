"""From shards on the disk to clips on the device."""

import math
from collections.abc import Iterator
from typing import Protocol

import torch

from ..kernels.device import sent_to
from ..model.clip_size import latent_size
from ..model.config import PATCH
from ..model.embeddings import token_grid
from ..model.flow import Caption, Clips
from .data.sampler import Sampler, local
from .data.shards import Batch, ShardDataset


class StepBatches(Protocol):
    """Where the microbatches of a step come from."""

    def global_ids(self, sample_index: int) -> list[int]: ...

    def tokens(self, sample_index: int) -> tuple[int, int]: ...

    def microbatches(self, sample_index: int, device: torch.device) -> Iterator[Clips]: ...


class RepeatedBatch:
    """The same clips in every microbatch of every step."""

    def __init__(self, clips: Clips, count: int = 1):
        """`count`: microbatches of a step."""
        self.clips, self.count = clips, count

    def global_ids(self, _sample_index: int) -> list[int]:
        return self.clips.sample_B.tolist()

    def tokens(self, _sample_index: int) -> tuple[int, int]:
        return math.prod(token_grid(self.clips.latents_BCFYX)), self.clips.caption.tokens_BTW.shape[1]

    def microbatches(self, _sample_index: int, _device: torch.device) -> Iterator[Clips]:
        for _ in range(self.count):
            yield self.clips


class StepLoader:
    """The microbatches of a step, for one data-parallel rank: a pure function of the global sample index."""

    def __init__(self, dataset: ShardDataset, sampler: Sampler, *, data_rank: int, data_size: int, micro_batch: int):
        self.dataset, self.sampler = dataset, sampler
        self.data_rank, self.data_size, self.micro_batch = data_rank, data_size, micro_batch

    def global_ids(self, sample_index: int) -> list[int]:
        """Ids of the whole global batch that begins at `sample_index`; all of one bucket, on every rank."""
        return self.sampler.batch(sample_index)[1]

    def tokens(self, sample_index: int) -> tuple[int, int]:
        """Video and text tokens of each sample of that batch."""
        frames, rows, columns = latent_size(*self.sampler.batch(sample_index)[0])
        return frames * (rows // PATCH) * (columns // PATCH), self.dataset.manifest.text.tokens

    def microbatches(self, sample_index: int, device: torch.device) -> Iterator[Clips]:
        """This rank's part of that batch, in pieces."""
        ids = local(self.global_ids(sample_index), self.data_rank, self.data_size)
        for start in range(0, len(ids), self.micro_batch):
            yield to_device(self.dataset.read(ids[start : start + self.micro_batch]), device)


def to_device(batch: Batch, device: torch.device) -> Clips:
    """Clips on `device`; on an accelerator by way of pinned memory, so that the host does not wait for the copy."""

    return Clips(
        latents_BCFYX=sent_to(device, batch.latents_BCFYX),
        caption=Caption(sent_to(device, batch.tokens_BTW), sent_to(device, batch.pooled_BW)),
        sample_B=sent_to(device, batch.sample_B),
    )
