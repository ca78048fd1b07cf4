"""Philox4x32-10: random numbers as a pure function of what they are for, never of rank, batch or order.

Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011 (section 3.3, Philox).

One call of the generator maps a counter of four 32-bit words and a key of two to four random 32-bit words:

    counter = (element, sample, step, stream)     key = (seed mod 2**32, seed div 2**32)

element is the flat index of a value in its FULL tensor (for noise: in the whole latent [C, F, Y, X]), sample the id of
the training sample, step the training step, and stream says what the number is for.

Every backend repeats these formulas. Words are bit-equal everywhere. `uniform` is exact in fp32, so it is bit-equal
everywhere too. `normal` takes a logarithm, a square root and a cosine in fp32: bit-equal within a backend, within
4 ULP between backends.
"""

import math
from enum import IntEnum

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
# What the key grows by each round: fractions of the golden ratio and of the square root of 3 (the paper's Weyl keys).
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


class Stream(IntEnum):
    """What a random number is for: the fourth counter word, so that no two purposes ever share a number."""

    NOISE = 0
    TIMESTEP = 1
    CAPTION_DROPOUT = 2
    SHUFFLE = 3
    SAMPLING = 4


Counter = int | Tensor
"""One counter word: an int in [0, 2**32), or an int64 tensor whose values are taken modulo 2**32 (a check would make
the host wait for the device)."""


def words(
    seed: int, element: Counter, sample: Counter, step: Counter, stream: Counter
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four random words of each counter.

    Args:
        seed: int in [0, 2**64).
        element, sample, step, stream: ints or int64 tensors that broadcast against each other, on one device.

    Returns:
        Four int64 tensors of the broadcast shape, each value in [0, 2**32); 0-D on the CPU if no tensor is given.

    Raises:
        ValueError: the seed or an int counter word is out of range.
    """
    check_seed(seed)
    key0, key1 = seed & _WORD, seed >> 32
    word0, word1, word2, word3 = (
        _counter_word(name, value)
        for name, value in (("element", element), ("sample", sample), ("step", step), ("stream", stream))
    )
    # Counters stay unbroadcast as long as the rounds allow: the first ones are then nearly free.
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], word0)
        high1, low1 = _multiply(_MULTIPLIERS[1], word2)
        word0, word1, word2, word3 = high1 ^ word1 ^ key0, low1, high0 ^ word3 ^ key1, low0
        key0, key1 = (key0 + _KEY_STEPS[0]) & _WORD, (key1 + _KEY_STEPS[1]) & _WORD
    return tuple(torch.as_tensor(word, dtype=torch.int64) for word in (word0, word1, word2, word3))


def uniform(word: Tensor) -> Tensor:
    """Uniform fp32 in the open interval (0, 1): ((word >> 8) | 1) * 2**-24.

    An odd 24-bit integer times a power of two: no rounding happens, so every backend gives the same bits. The smallest
    value is 2**-24, the largest 1 - 2**-24, the mean exactly 1/2. word: int64 as `words` returns it, any shape.
    """
    return ((word >> 8) | 1).to(torch.float32) * 2.0**-24


def normal(word0: Tensor, word1: Tensor) -> Tensor:
    """Standard normal fp32 by Box-Muller, one value for each pair of words (the sine's half is not used).

        u1 = ((word0 >> 8) + 1) * 2**-24    in (0, 1], exact in fp32
        u2 =  (word1 >> 8)      * 2**-24    in [0, 1), exact in fp32
        normal = sqrt(-2 ln u1) * cos(u2 * 6.2831855)

    each operation rounded to fp32 once, 6.2831855 being the fp32 nearest to 2 pi. |normal| <= sqrt(48 ln 2) < 5.769.
    word0, word1: int64 as `words` returns them, broadcast against each other.
    """
    radius = (((word0 >> 8) + 1).to(torch.float32) * 2.0**-24).log().mul(-2.0).sqrt()
    angle = ((word1 >> 8).to(torch.float32) * 2.0**-24) * math.tau
    return radius * angle.cos()


def check_seed(seed: int) -> None:
    """Raises ValueError unless seed is a Philox key."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}; Philox takes an unsigned 64-bit key: choose a seed in [0, 2**64)")


def check_counter(name: str, value: int) -> None:
    """Raises ValueError unless value is a counter word."""
    if not 0 <= value <= _WORD:
        raise ValueError(f"{name} is {value}; a Philox counter word must be in [0, 2**32)")


def _counter_word(name: str, value: Counter) -> Counter:
    if isinstance(value, Tensor):
        assert not value.is_floating_point(), f"{name} must hold integers, not {value.dtype}"
        return value.to(torch.int64) & _WORD
    check_counter(name, value)
    return int(value)


def _multiply(multiplier: int, word: Counter) -> tuple[Counter, Counter]:
    """High and low 32 bits of a 32 x 32-bit product, in halves of 16 bits: torch has no unsigned 64-bit arithmetic,
    and the halves never leave int64's positive range."""
    low_product = (word & 0xFFFF) * multiplier
    high_product = (word >> 16) * multiplier + (low_product >> 16)
    return high_product >> 16, ((high_product & 0xFFFF) << 16) | (low_product & 0xFFFF)
