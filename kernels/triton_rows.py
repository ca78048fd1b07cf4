"""What the Triton kernels over rows of tokens share: sums over rows without atomics, and whole rows in two parts.

Each program of a backward kernel keeps sums of the rows it visits in registers and leaves them in memory, as one row of
partial sums; a second kernel adds those in a fixed order. The same inputs give the same bits on the same device.
"""

import triton
import triton.language as tl
from torch import Tensor

from .compilation import Config, Launch
from .device import processors

WIDEST = 16384
"""The most values of a row that a program can hold."""


def two_parts(width: int) -> tuple[int, int]:
    """Powers of two that together hold a row: 2432 is 2048 and 512, 1024 is 512 and 512.

    Padded to one power of two, a row of 2432 would take 4096 registers instead of 2560. The first part needs no mask.
    """
    if width > WIDEST:
        raise ValueError(f"rows have {width} values; this Triton kernel takes up to {WIDEST}: choose another backend")
    head = 1 << max(width - 1, 1).bit_length() - 1
    return head, triton.next_power_of_2(max(width - head, 1))


def programs_sharing(tokens: int, config: Config, like: Tensor, groups: int = 1) -> int:
    """How many programs share the rows of each of `groups` samples or blocks of columns: enough to keep the device
    busy, no more than leave each some rows, so that partial sums stay few beside what they are sums of."""
    most = max(1, processors(like.device) * config.programs // groups)
    return min(most, triton.cdiv(tokens, 4 * config.rows))


def strides(**tensors: Tensor) -> dict[str, int]:
    """Kernel arguments x_s, x_b, x_d for strides(x_SBD=x). An axis of length 1 may have any stride; 0 has the best
    alignment and compiles nothing anew."""
    result = {}
    for named, tensor in tensors.items():
        name, _, letters = named.rpartition("_")
        for letter, size, stride in zip(letters.lower(), tensor.shape, tensor.stride(), strict=True):
            result[f"{name}_{letter}"] = stride if size > 1 else 0
    return result


def sum_partials(partials: Tensor, *outputs: Tensor) -> Launch:
    """outputs[i] = sum over programs of partials[i], rounded to the output's dtype; partials is [outputs, programs,
    values], outputs (one to three) are contiguous."""
    count, programs, values = partials.shape
    first, second, third = (*outputs, None, None)[:3]
    assert count == len(outputs) <= 3
    return Launch(
        kernel=_sum_partials,
        grid=(triton.cdiv(values, _SUM_COLUMNS), count),
        arguments={
            "partials": partials, "first": first, "second": second, "third": third, "programs": programs,
            "values": values, "ROWS": _SUM_ROWS, "COLUMNS": _SUM_COLUMNS,
        },
    )  # fmt: skip


_SUM_ROWS, _SUM_COLUMNS = 64, 64


@triton.jit(do_not_specialize=["programs"])
def _sum_partials(partials, first, second, third, programs, values, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    which = tl.program_id(1)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    there = column < values
    start = partials + which.to(tl.int64) * programs * values
    total = tl.full([ROWS, COLUMNS], 0.0, tl.float32)
    for begin in range(0, programs, ROWS):
        row = begin + tl.arange(0, ROWS)
        place = row.to(tl.int64)[:, None] * values + column[None, :]
        total += tl.load(start + place, mask=(row < programs)[:, None] & there[None, :], other=0.0)
    sums = tl.sum(total, axis=0)
    tl.store(first + column, sums.to(first.dtype.element_ty), mask=there & (which == 0))
    if second is not None:
        tl.store(second + column, sums.to(second.dtype.element_ty), mask=there & (which == 1))
    if third is not None:
        tl.store(third + column, sums.to(third.dtype.element_ty), mask=there & (which == 2))


@triton.jit
def load_rows(pointers, stride, there, WIDTH: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr):
    """Both parts, fp32, of the rows that begin at pointers [ROWS, 1]; there [ROWS, 1] says which rows exist."""
    head = tl.arange(0, HEAD)[None, :]
    tail = HEAD + tl.arange(0, TAIL)[None, :]
    first = tl.load(pointers + head.to(tl.int64) * stride, mask=there, other=0.0)
    second = tl.load(pointers + tail.to(tl.int64) * stride, mask=there & (tail < WIDTH), other=0.0)
    return first.to(tl.float32), second.to(tl.float32)


@triton.jit
def load_row(pointer, stride, WIDTH: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr):
    """Both parts, fp32, of the one row that begins at pointer."""
    head = tl.arange(0, HEAD)[None, :]
    tail = HEAD + tl.arange(0, TAIL)[None, :]
    first = tl.load(pointer + head.to(tl.int64) * stride)
    second = tl.load(pointer + tail.to(tl.int64) * stride, mask=tail < WIDTH, other=0.0)
    return first.to(tl.float32), second.to(tl.float32)


@triton.jit
def store_rows(pointers, first, second, there, WIDTH: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr):
    """Rounds both parts and writes them to contiguous rows that begin at pointers [ROWS, 1]."""
    head = tl.arange(0, HEAD)[None, :]
    tail = HEAD + tl.arange(0, TAIL)[None, :]
    kind = pointers.dtype.element_ty
    tl.store(pointers + head, first.to(kind), mask=there)
    tl.store(pointers + tail, second.to(kind), mask=there & (tail < WIDTH))


@triton.jit
def store_row_sums(pointer, first, second, WIDTH: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr):
    """Sums both parts over the rows held and writes one fp32 row that begins at pointer."""
    head = tl.arange(0, HEAD)
    tail = HEAD + tl.arange(0, TAIL)
    tl.store(pointer + head, tl.sum(first, axis=0))
    tl.store(pointer + tail, tl.sum(second, axis=0), mask=tail < WIDTH)


@triton.jit
def row_sums(first, second):
    """Sum over both parts of each row, [ROWS, 1]."""
    return (tl.sum(first, axis=1) + tl.sum(second, axis=1))[:, None]


@triton.jit
def row_moments(first, second, epsilon, WIDTH: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr):
    """Mean and reciprocal deviation of each row, [ROWS, 1]. The squares are of what lies apart from the mean: the
    difference of two large sums would lose a small variance."""
    mean = row_sums(first, second) / WIDTH
    tail = HEAD + tl.arange(0, TAIL)[None, :]
    apart, apart_tail = first - mean, tl.where(tail < WIDTH, second - mean, 0.0)
    variance = row_sums(apart * apart, apart_tail * apart_tail) / WIDTH
    return mean, 1.0 / tl.sqrt_rn(variance + epsilon)


@triton.jit
def modulated(
    first, second, row_mean, row_reciprocal, shift, scale, sample, shift_b, shift_d, scale_b, scale_d,
    WIDTH: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """Rows normalised by their moments, times 1 + scale, plus shift: the forward of a modulated LayerNorm."""
    scale_first, scale_second = load_row(scale + sample * scale_b, scale_d, WIDTH, HEAD, TAIL)
    shift_first, shift_second = load_row(shift + sample * shift_b, shift_d, WIDTH, HEAD, TAIL)
    first = (first - row_mean) * row_reciprocal * (1.0 + scale_first) + shift_first
    second = (second - row_mean) * row_reciprocal * (1.0 + scale_second) + shift_second
    return first, second


@triton.jit
def through_norm(d_first, d_second, n_first, n_second, row_reciprocal, WIDTH: tl.constexpr):
    """The gradient of rows before a LayerNorm, from that of the normalised rows n."""
    level = row_sums(d_first, d_second) / WIDTH
    slope = row_sums(d_first * n_first, d_second * n_second) / WIDTH
    d_first = (d_first - level - n_first * slope) * row_reciprocal
    d_second = (d_second - level - n_second * slope) * row_reciprocal
    return d_first, d_second
