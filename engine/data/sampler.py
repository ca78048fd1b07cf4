"""Which samples a step trains on: a pure function of (seed, global sample index), the same for every layout.

The data cursor of a run is one number, the global sample index (samples consumed so far); any batch can be computed
without the ones before it, and the data-parallel size only decides who reads which part. Each bucket is an endless
stream of permutations of its samples, cut into full batches; in epoch e bucket b, with N samples, gives
floor((e + 1) N / B) - floor(e N / B) of them, so what does not fill a batch opens the next epoch's first one and every
sample comes exactly once in each N of its bucket's stream. Within an epoch the buckets take turns in a shuffled order.
"""

from bisect import bisect_right
from collections.abc import Hashable, Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from ...kernels.philox import Stream, words

BATCH_ORDER = 2**32 - 1
"""Takes the place of a bucket's number in the Philox counter when an epoch's batches, not samples, are shuffled."""


class Sampler:
    """Global batches of `batch` samples. `samples` maps bucket -> sample ids (`ShardDataset.samples()`).

    Buckets are numbered in their sorted order. ValueError if there is no sample at all.
    """

    def __init__(self, samples: Mapping[Hashable, Sequence[int]], *, batch: int, seed: int):
        if batch < 1:
            raise ValueError(f"global batch is {batch}; it must be at least 1")
        self.buckets = [bucket for bucket in sorted(samples) if len(samples[bucket])]
        if not self.buckets:
            raise ValueError("there is no sample to draw from; expected at least one bucket with one sample")
        self.ids = [tuple(samples[bucket]) for bucket in self.buckets]
        self.size, self.seed = batch, seed
        # The last permutations, so that neighbouring batches do not sort an epoch again. Only a cache: see `batch`.
        self._last: dict[int, tuple[tuple[int, int], Tensor]] = {}

    def batch(self, index: int) -> tuple[Hashable, list[int]]:
        """Bucket and sample ids of the global batch that begins at global sample index `index`, a multiple of B."""
        if index < 0 or index % self.size:
            raise ValueError(
                f"global sample index is {index}; it must be a multiple of the global batch, {self.size}: "
                "resume with the global batch size of the checkpoint"
            )
        number = index // self.size
        epoch = self._epoch_of(number)
        ends = list(accumulate(self._batches_before(b, epoch + 1) - self._batches_before(b, epoch) for b in self._all))
        # Shuffled is which bucket comes when; each bucket's own batches stay in the order of its stream.
        order = self._permutation(BATCH_ORDER, epoch, ends[-1])[: number - self._total_before(epoch) + 1]
        turns = torch.searchsorted(torch.tensor(ends), order, right=True)
        bucket = int(turns[-1])
        ordinal = self._batches_before(bucket, epoch) + int((turns[:-1] == bucket).sum())
        return self.buckets[bucket], self._stream(bucket, ordinal * self.size, self.size)

    @property
    def _all(self) -> range:
        return range(len(self.buckets))

    def _batches_before(self, bucket: int, epoch: int) -> int:
        return epoch * len(self.ids[bucket]) // self.size

    def _total_before(self, epoch: int) -> int:
        return sum(self._batches_before(bucket, epoch) for bucket in self._all)

    def _epoch_of(self, number: int) -> int:
        """The epoch e with total_before(e) <= number < total_before(e + 1)."""
        samples = sum(map(len, self.ids))
        # Rounding down holds back less than one batch a bucket, which bounds the search on both sides.
        low = number * self.size // samples
        high = (number + 1 + len(self.buckets)) * self.size // samples + 2
        return low + bisect_right(range(low, high), number, key=self._total_before) - 1

    def _stream(self, bucket: int, first: int, count: int) -> list[int]:
        """Sample ids at positions [first, first + count) of the bucket's endless stream."""
        ids = self.ids[bucket]
        chosen: list[int] = []
        while len(chosen) < count:
            epoch, position = divmod(first + len(chosen), len(ids))
            order = self._permutation(bucket, epoch, len(ids))
            chosen += [ids[place] for place in order[position : position + count - len(chosen)].tolist()]
        return chosen

    def _permutation(self, bucket: int, epoch: int, count: int) -> Tensor:
        """Philox's permutation of range(count), int64, for this seed, bucket and epoch."""
        key, order = self._last.get(bucket, (None, None))
        if key != (epoch, count):
            element = torch.arange(count, dtype=torch.int64)
            first, second, _, _ = words(self.seed, element, bucket, epoch, Stream.SHUFFLE)
            # 63 bits of key; equal keys (one pair in 2^63) keep their order, so it is a permutation all the same.
            order = ((first << 31) | (second >> 1)).argsort(stable=True)
            self._last[bucket] = ((epoch, count), order)
        return order


def local(ids: Sequence[int], data_rank: int, data_size: int) -> list[int]:
    """The part of a global batch that data-parallel rank `data_rank` of `data_size` reads: a contiguous piece."""
    if data_size < 1 or not 0 <= data_rank < data_size or len(ids) % data_size:
        raise ValueError(
            f"a global batch of {len(ids)} for data rank {data_rank} of {data_size}: the batch must be a multiple of "
            "the data-parallel size and the rank below it: change trainer.global_batch or the number of ranks"
        )
    share = len(ids) // data_size
    return list(ids[data_rank * share : (data_rank + 1) * share])
