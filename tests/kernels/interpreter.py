"""Triton's interpreter computes on NumPy, which has no bfloat16: it holds the bits in uint16. Two things go wrong:

`tl.dot` of bfloat16 multiplies the bit patterns as integers (Triton issue 11584), and float32 -> bfloat16 cuts the
lower half off where hardware rounds to nearest even. `repair` puts both right; `test_interpreter.py` fails the day that
Triton does so itself, so that this file can go. It also spares each function that a kernel calls 5 ms, by which Triton
prepares its language once more though the kernel has done so.
"""

import numpy
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle

untouched_dot = InterpreterBuilder.create_dot
untouched_cast = InterpreterBuilder.cast_impl
untouched_call = InterpretedFunction.__call__
_HALF = 16
"""Bits that bfloat16 has fewer than float32."""


def repair() -> None:
    """Once, before the first kernel runs in the interpreter."""
    InterpreterBuilder.create_dot = _dot
    InterpreterBuilder.cast_impl = _cast
    InterpretedFunction.__call__ = _call_from_a_kernel


def widened(bits: numpy.ndarray) -> numpy.ndarray:
    """bfloat16 as uint16 -> float32, exact."""
    return (bits.astype(numpy.uint32) << _HALF).view(numpy.float32)


def rounded(values: numpy.ndarray) -> numpy.ndarray:
    """float32 -> bfloat16 as uint16, to nearest even; NaN stays NaN."""
    bits = numpy.ascontiguousarray(values, numpy.float32).view(numpy.uint32)
    odd = (bits >> _HALF) & 1
    nearest = ((bits.astype(numpy.uint64) + 0x7FFF + odd) >> _HALF).astype(numpy.uint16)
    return numpy.where(numpy.isnan(values), numpy.uint16(0x7FC0), nearest)


def _dot(self, a, b, accumulator, input_precision, max_num_imprecise_acc):
    if tl.bfloat16 not in (a.dtype.scalar, b.dtype.scalar):
        return untouched_dot(self, a, b, accumulator, input_precision, max_num_imprecise_acc)
    a, b = (widened(each.data) if each.dtype.scalar == tl.bfloat16 else each.data for each in (a, b))
    return TensorHandle(numpy.matmul(a, b) + accumulator.data, accumulator.dtype.scalar)


def _cast(self, source, kind):
    if source.dtype.scalar == tl.float32 and kind.scalar == tl.bfloat16:
        return TensorHandle(rounded(source.data), tl.bfloat16)
    return untouched_cast(self, source, kind)


def _call_from_a_kernel(self, *arguments, **named):
    if self.fn.__module__.startswith("triton."):
        return untouched_call(self, *arguments, **named)
    return self.rewrite()(*arguments, **named)
