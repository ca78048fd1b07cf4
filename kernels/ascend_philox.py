"""Philox4x32-10 and its normals inside a Triton kernel for Ascend, by the formulas of philox.py.

Triton's own generator is of no use there: its high word of an unsigned product is lowered as that of a signed one,
value by value. Here a product is made of 16-bit halves in int32, whose sums and products wrap as unsigned ones do; a
shift to the right is masked, so that it does not matter whether it fills with the sign.

There is no fp64. Logarithm and cosine are taken in fp32 with what is lost carried along, from sums and products only,
whose rounding is the same everywhere; the polynomials are Chebyshev fits, whose error is below fp32's.
"""

import triton
import triton.language as tl


def _signed(word: int) -> int:
    """The int32 with these 32 bits."""
    return word - (1 << 32) if word >> 31 else word


_MULTIPLIER0, _MULTIPLIER1 = tl.constexpr(_signed(0xD2511F53)), tl.constexpr(_signed(0xCD9E8D57))
_KEY_STEP0, _KEY_STEP1 = tl.constexpr(_signed(0x9E3779B9)), tl.constexpr(_signed(0xBB67AE85))
_HALF = tl.constexpr(0xFFFF)
_TAU = tl.constexpr(6.2831855)
_QUARTERS_PER_RADIAN = tl.constexpr(0.63661975)
_QUARTER_HIGH, _QUARTER_MIDDLE = tl.constexpr(1.5706787109375), tl.constexpr(0.00011761585483327508)
_QUARTER_LOW = tl.constexpr(2.5633440682570896e-12)
"""Together pi / 2; the first two have so few bits that up to four times each is exact."""
_LN2_HIGH, _LN2_LOW = tl.constexpr(0.693359375), tl.constexpr(-0.00021219444170128554)


@triton.jit
def _high_product(word, MULTIPLIER: tl.constexpr):
    """The upper 32 bits of word times MULTIPLIER, both unsigned in int32."""
    low: tl.constexpr = MULTIPLIER & 0xFFFF
    high: tl.constexpr = (MULTIPLIER >> 16) & 0xFFFF
    word_low, word_high = word & _HALF, (word >> 16) & _HALF
    carried = word_high * low + (((word_low * low) >> 16) & _HALF)
    middle = word_low * high + (carried & _HALF)
    return word_high * high + ((carried >> 16) & _HALF) + ((middle >> 16) & _HALF)


@triton.jit
def first_words(seed_low, seed_high, element, sample, step, STREAM: tl.constexpr):
    """The first two words of each counter, as int32; arguments are int32 with the bits of the unsigned words."""
    key0, key1 = seed_low, seed_high
    word0 = element
    word1, word2, word3 = element * 0 + sample, element * 0 + step, element * 0 + STREAM
    for _ in range(10):  # unrolled, the compiler would plan the memory of a thousand tiles for a minute
        high0, low0 = _high_product(word0, _MULTIPLIER0), word0 * _MULTIPLIER0
        high1, low1 = _high_product(word2, _MULTIPLIER1), word2 * _MULTIPLIER1
        word0, word1, word2, word3 = high1 ^ word1 ^ key0, low1, high0 ^ word3 ^ key1, low0
        key0, key1 = key0 + _KEY_STEP0, key1 + _KEY_STEP1
    return word0, word1


@triton.jit
def normal(word0, word1):
    """A standard normal fp32 for each pair of words."""
    steps = ((word0 >> 8) & 0xFFFFFF) + 1
    angle = ((word1 >> 8) & 0xFFFFFF).to(tl.float32) * 5.9604644775390625e-08 * _TAU
    return tl.sqrt(_logarithm(steps.to(tl.float32)) * -2.0) * _cosine(angle)


@triton.jit
def _logarithm(steps):
    """ln(steps 2**-24) of an fp32 integer from 1 to 2**24: its mantissa's, in [1/sqrt(2), sqrt(2)), and exponent's."""
    bits = steps.to(tl.int32, bitcast=True)
    mantissa = ((bits & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
    exponent = (((bits >> 23) & 0xFF) - (127 + 24)).to(tl.float32)
    above = mantissa > 1.4142135
    mantissa = tl.where(above, mantissa * 0.5, mantissa)
    exponent = tl.where(above, exponent + 1.0, exponent)
    f = mantissa - 1.0
    square = f * f
    rest = 0.07149753719568253 * f - 0.115712009370327
    rest = rest * f + 0.11661510914564133
    rest = rest * f - 0.12411050498485565
    rest = rest * f + 0.14249937236309052
    rest = rest * f - 0.1666848063468933
    rest = rest * f + 0.20000708103179932
    rest = rest * f - 0.24999989569187164
    rest = rest * f + 0.3333333134651184
    small = exponent * _LN2_LOW - (0.5 * square - square * f * rest)
    return exponent * _LN2_HIGH + (f + small)


@triton.jit
def _cosine(angle):
    """cos of fp32 in [0, 2 pi]: cosine or sine of what is left beyond the nearest quarter of the circle."""
    quarter = (angle * _QUARTERS_PER_RADIAN + 0.5).to(tl.int32)
    turns = quarter.to(tl.float32)
    near = angle - turns * _QUARTER_HIGH
    middle = turns * _QUARTER_MIDDLE
    rest = near - middle
    lost = ((near - rest) - middle) - turns * _QUARTER_LOW
    square = rest * rest
    sine = ((2.7246908302913653e-06 * square - 0.00019840063760057092) * square + 0.008333331905305386) * square
    sine = rest + (rest * square * (sine - 0.1666666716337204) + lost)
    cosine = ((-2.729843515680841e-07 * square + 2.4800581741146743e-05) * square - 0.00138888880610466) * square
    half = 0.5 * square
    most = 1.0 - half
    cosine = most + (((1.0 - most) - half) + (square * square * (cosine + 0.0416666679084301) - rest * lost))
    value = tl.where((quarter & 1) == 0, cosine, sine)
    return tl.where((quarter == 1) | (quarter == 2), -value, value)
