"""The sampler's promises, over random bucket sizes, batch sizes and seeds."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contentv.engine.data.manifest import Bucket
from contentv.engine.data.sampler import Sampler, local
from contentv.kernels.philox import Stream, words

sizes = st.lists(st.integers(0, 23), min_size=1, max_size=4).filter(any)
batches = st.integers(1, 9)
seeds = st.integers(0, 2**64 - 1)


def buckets(counts: list[int]) -> dict[str, list[int]]:
    """Ids that are neither dense nor shared between buckets."""
    return {f"bucket {number}": [1000 * number + 7 * i for i in range(count)] for number, count in enumerate(counts)}


def stream(sampler: Sampler, batch: int, count: int) -> list[tuple[str, list[int]]]:
    return [sampler.batch(number * batch) for number in range(count)]


@settings(max_examples=60, deadline=None)
@given(sizes, batches, seeds)
def test_every_sample_comes_exactly_once_in_each_bucket_epoch(counts, batch, seed):
    samples = buckets(counts)
    sampler = Sampler(samples, batch=batch, seed=seed)
    streams: dict[str, list[int]] = {}
    for bucket, ids in stream(sampler, batch, 4 * sum(counts) // batch + 4):
        assert len(ids) == batch
        streams.setdefault(bucket, []).extend(ids)
    for bucket, ids in streams.items():
        size = len(samples[bucket])
        for start in range(0, len(ids) - size + 1, size):
            assert sorted(ids[start : start + size]) == samples[bucket]


@settings(max_examples=60, deadline=None)
@given(sizes, batches, seeds)
def test_an_epoch_gives_each_bucket_its_full_batches(counts, batch, seed):
    """Counted by hand: in epoch e, floor((e + 1) N / B) - floor(e N / B) batches of each bucket."""
    samples = buckets(counts)
    sampler = Sampler(samples, batch=batch, seed=seed)
    number = 0
    for epoch in range(4):
        expected = {b: (epoch + 1) * len(ids) // batch - epoch * len(ids) // batch for b, ids in samples.items()}
        here = [sampler.batch((number + i) * batch)[0] for i in range(sum(expected.values()))]
        assert Counter(here) == Counter({bucket: count for bucket, count in expected.items() if count})
        number += len(here)


@settings(max_examples=40, deadline=None)
@given(sizes, batches, seeds, st.lists(st.integers(0, 200), min_size=1, max_size=8))
def test_random_access_equals_going_through(counts, batch, seed, visits):
    through = stream(Sampler(buckets(counts), batch=batch, seed=seed), batch, max(visits) + 1)
    jumping = Sampler(buckets(counts), batch=batch, seed=seed)
    for number in visits:
        assert jumping.batch(number * batch) == through[number]
        assert Sampler(buckets(counts), batch=batch, seed=seed).batch(number * batch) == through[number]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.sampled_from([1, 2, 3, 4, 6, 12]), seeds)
def test_the_global_batch_does_not_know_the_data_size(number, data_size, seed):
    _, ids = Sampler(buckets([9, 5]), batch=12, seed=seed).batch(number * 12)
    assert sum((local(ids, rank, data_size) for rank in range(data_size)), []) == ids
    assert {len(local(ids, rank, data_size)) for rank in range(data_size)} == {12 // data_size}


def test_order_is_philox_as_written():
    """The first epoch of one bucket, sorted by Philox words in numpy."""
    ids = list(range(100, 131))
    _, chosen = Sampler({"only": ids}, batch=31, seed=5).batch(0)
    first, second, _, _ = words(5, torch.arange(31), 0, 0, Stream.SHUFFLE)
    keys = (first.numpy().astype(np.uint64) << np.uint64(31)) | (second.numpy().astype(np.uint64) >> np.uint64(1))
    assert chosen == [ids[place] for place in np.argsort(keys, kind="stable")]
    assert chosen != ids


def test_seeds_and_epochs_differ():
    samples = {"only": list(range(40))}
    first = Sampler(samples, batch=40, seed=0)
    assert first.batch(0) != first.batch(40)
    assert first.batch(0) != Sampler(samples, batch=40, seed=1).batch(0)
    assert first.batch(0) != Sampler(samples, batch=40, seed=2**32).batch(0)


def test_buckets_are_mixed_within_an_epoch():
    samples = {Bucket(17, 64, 96): list(range(64)), Bucket(1, 64, 96): list(range(64, 128))}
    sampler = Sampler(samples, batch=4, seed=0)
    order = [sampler.batch(number * 4)[0] for number in range(32)]
    assert order != sorted(order) and order != sorted(order, reverse=True)


def test_what_is_impossible_is_refused():
    with pytest.raises(ValueError, match="at least one bucket"):
        Sampler({"empty": []}, batch=2, seed=0)
    with pytest.raises(ValueError, match="global batch"):
        Sampler({"only": [1]}, batch=0, seed=0)
    with pytest.raises(ValueError, match="multiple of the global batch, 4"):
        Sampler({"only": [1]}, batch=4, seed=0).batch(6)
    for rank, size in ((0, 3), (2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="data rank"):
            local([1, 2, 3, 4], rank, size)
