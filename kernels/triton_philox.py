"""Philox4x32-10 and its normals inside a Triton kernel, by the formulas of philox.py.

Triton brings the generator itself; its words are those of the paper, and tests hold them against philox.py bit by bit.
Logarithm and cosine are taken in fp64 and rounded to fp32 once: the fp32 ones of a GPU are approximations, near 1 and
near the cosine's zeros far beyond 4 ULP. The cosine is written out because Triton's fp64 cosine needs memory of its own
for arguments that do not occur here.
"""

import math

import triton
import triton.language as tl

_TAU = tl.constexpr(6.2831855)
_QUARTERS_PER_RADIAN = tl.constexpr(2 / math.pi)
_QUARTER = tl.constexpr(math.pi / 2)


@triton.jit
def words(seed_low, seed_high, element, sample, step, stream):
    """The four uint32 words of a counter; every argument is an integer of any width in [0, 2**32)."""
    seed = (seed_high.to(tl.uint64) << 32) | seed_low.to(tl.uint64)
    return tl.philox(
        seed, element.to(tl.uint32), sample.to(tl.uint32), step.to(tl.uint32), tl.full([], stream, tl.uint32)
    )


@triton.jit
def normal(word0, word1):
    """A standard normal fp32 for each pair of uint32 words."""
    uniform = ((word0 >> 8) + 1).to(tl.float32) * 5.9604644775390625e-08
    logarithm = tl.log(uniform.to(tl.float64)).to(tl.float32)
    angle = (word1 >> 8).to(tl.float32) * 5.9604644775390625e-08 * _TAU
    return tl.sqrt_rn(logarithm * -2.0) * _cosine(angle)


@triton.jit
def _cosine(angle):
    """cos of fp32 in [0, 2 pi], within 1 ULP: cosine or sine of what is left beyond the nearest quarter of the circle,
    by Taylor's series up to where the next term is below 2**-28 of the result."""
    wide = angle.to(tl.float64)
    quarter = (wide * _QUARTERS_PER_RADIAN + 0.5).to(tl.int32)
    rest = wide - quarter.to(tl.float64) * _QUARTER
    square = rest * rest
    cosine = 1.0 + square * (-1 / 2 + square * (1 / 24 + square * (-1 / 720 + square * (1 / 40320 - square / 3628800))))
    sine = rest * (1.0 + square * (-1 / 6 + square * (1 / 120 + square * (-1 / 5040 + square / 362880))))
    value = tl.where(quarter % 2 == 0, cosine, sine)
    return tl.where((quarter == 1) | (quarter == 2), -value, value).to(tl.float32)
