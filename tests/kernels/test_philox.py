"""Philox against Random123's known answers, an implementation in plain integers, and numpy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contentv.kernels import philox

KNOWN_ANSWERS = [
    # Random123's kat_vectors, philox4x32 10: counter, key, words.
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
WORD = st.integers(0, 2**32 - 1)


def in_integers(counter, seed):
    """The generator in Python's unbounded integers."""
    a, b, c, d = counter
    low, high = seed % 2**32, seed // 2**32
    for turn in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        first, second = (low + turn * 0x9E3779B9) % 2**32, (high + turn * 0xBB67AE85) % 2**32
        a, b, c, d = (q // 2**32) ^ b ^ first, q % 2**32, (p // 2**32) ^ d ^ second, p % 2**32
    return a, b, c, d


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
@pytest.mark.parametrize("as_tensors", [False, True])
def test_known_answers(counter, key, expected, as_tensors):
    counter = [int(word, 16) for word in counter.split()]
    low, high = (int(word, 16) for word in key.split())
    if as_tensors:
        counter = [torch.tensor([[word]]) for word in counter]
    words = philox.words(low | high << 32, *counter)
    assert " ".join(f"{word.item():08x}" for word in words) == expected
    assert {(word.dtype, word.shape) for word in words} == {(torch.int64, counter[0].shape if as_tensors else ())}


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**64 - 1), counters=st.lists(st.tuples(WORD, WORD, WORD, WORD), min_size=1, max_size=9))
def test_words_equal_plain_integers(seed, counters):
    words = philox.words(seed, *(torch.tensor(column) for column in zip(*counters, strict=True)))
    assert list(zip(*(word.tolist() for word in words), strict=True)) == [in_integers(each, seed) for each in counters]


def test_counters_broadcast():
    element, sample = torch.arange(5), torch.tensor([[3], [8], [2**31]])
    whole = torch.stack(philox.words(7, element, sample, 11, philox.Stream.NOISE), dim=-1)
    assert whole.shape == (3, 5, 4)
    for row, column in ((0, 0), (2, 4), (1, 3)):
        assert tuple(whole[row, column].tolist()) == in_integers((column, int(sample[row, 0]), 11, 0), 7)


def test_tensors_count_modulo_two_to_the_32():
    large, small = (torch.stack(philox.words(1, torch.tensor(value), 0, 0, 0)) for value in (2**32 + 5, 5))
    assert torch.equal(large, small)


def test_every_part_of_the_counter_and_key_matters():
    base = (1, 2, 3, 4, 5)
    seen = {tuple(int(word) for word in philox.words(*base))}
    for position in range(5):
        seen.add(tuple(int(word) for word in philox.words(*(v + (i == position) for i, v in enumerate(base)))))
    seen.add(tuple(int(word) for word in philox.words(1 + 2**32, *base[1:])))
    assert len(seen) == 7


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match="seed"):
        philox.words(seed, 0, 0, 0, 0)


@pytest.mark.parametrize("position", range(4))
def test_a_counter_out_of_range_is_refused(position):
    name = ("element", "sample", "step", "stream")[position]
    for value in (-1, 2**32):
        with pytest.raises(ValueError, match=name):
            philox.words(0, *(value if each == position else 0 for each in range(4)))


def test_uniform_is_exact_and_open():
    words = torch.tensor([0, 1, 255, 256, 511, 512, 2**31 - 1, 2**31, 2**32 - 512, 2**32 - 1])
    got = philox.uniform(words)
    assert got.dtype == torch.float32
    assert got.double().tolist() == [(2 * (word // 512) + 1) / 2**24 for word in words.tolist()]
    assert got.min() == 2.0**-24 and got.max() == 1 - 2.0**-24


def test_normal_within_4_ulp_of_its_formula():
    word0, word1, _, _ = philox.words(3, torch.arange(100_003), 5, 0, philox.Stream.NOISE)
    got = philox.normal(word0, word1)
    assert got.dtype == torch.float32
    # Where the formula rounds an input of a function to fp32, so does this; the functions themselves run in float64.
    u1 = ((word0.numpy() >> 8) + 1) / 2**24
    logarithm = np.log(u1).astype(np.float32).astype(np.float64)
    angle = ((word1.numpy() >> 8) / 2**24).astype(np.float32) * np.float32(math.tau)
    expected = np.sqrt(-2 * logarithm) * np.cos(angle.astype(np.float64))
    ulp = np.spacing(np.abs(expected).astype(np.float32)).astype(np.float64)
    assert (np.abs(got.numpy() - expected) / ulp).max() <= 4


def test_normal_at_the_edges_is_finite():
    extremes = torch.tensor([0, 255, 256, 2**31, 2**32 - 1])
    values = philox.normal(extremes[:, None], extremes[None, :])
    assert values.isfinite().all() and values.abs().max() <= math.sqrt(48 * math.log(2)) * (1 + 1e-6)
    assert not values[-1].any()  # u1 = 1: radius 0


def test_normals_do_not_depend_on_their_neighbours():
    """Vectorised logarithms and cosines must give the bits that a lone value gets."""
    element = torch.arange(1037)
    whole = philox.normal(*philox.words(9, element, 1, 2, 0)[:2])
    for start, stop in ((0, 1), (1, 2), (3, 20), (1000, 1037), (517, 518), (5, 1030)):
        part = philox.normal(*philox.words(9, element[start:stop], 1, 2, 0)[:2])
        assert torch.equal(part, whole[start:stop])
    strided = philox.normal(*philox.words(9, element.flip(0)[::3], 1, 2, 0)[:2])
    assert torch.equal(strided, whole.flip(0)[::3])


def test_moments():
    """200,000 values: bounds are 5 standard errors of each moment."""
    count = 200_000
    words = philox.words(1, torch.arange(count), 0, 0, philox.Stream.NOISE)
    normal, uniform = philox.normal(words[0], words[1]).double(), philox.uniform(words[2]).double()
    assert abs(normal.mean()) < 5 / count**0.5
    assert abs(normal.var() - 1) < 5 * (2 / count) ** 0.5
    assert abs((normal**4).mean() - 3) < 5 * (96 / count) ** 0.5
    assert abs((normal[1:] * normal[:-1]).mean()) < 5 / count**0.5
    assert abs(uniform.mean() - 0.5) < 5 / (12 * count) ** 0.5
    assert abs((normal * (uniform - 0.5)).mean()) < 5 / (12 * count) ** 0.5
