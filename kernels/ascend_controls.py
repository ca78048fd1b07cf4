"""Kernels that the lowering gate for Ascend must refuse, each for a reason of its own. They never run."""

import torch
import triton
import triton.language as tl

from .compilation import Compilation, Launch, compilations, on_meta


@triton.jit
def whole_rows(x, y, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    place = tl.arange(0, ROWS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    values = tl.load(x + place)
    tl.store(y + place, values / tl.sum(values, axis=1)[:, None])


@triton.jit
def in_double_precision(x, y, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(y + place, tl.log(tl.load(x + place).to(tl.float64)).to(tl.float32))


@triton.jit
def scattered_rows(x, y, rows, HEADS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    place = (row // HEADS) * 1000 + (row % HEADS) * WIDTH + column
    tl.store(y + row * WIDTH + column, tl.load(x + place, mask=row < rows, other=0.0), mask=row < rows)


@triton.jit
def tile_by_tile(x, y, rounds, SIDE: tl.constexpr):
    place = tl.arange(0, SIDE)[:, None] * SIDE + tl.arange(0, SIDE)[None, :]
    kept = tl.load(x + place)
    largest = tl.full([SIDE], -1.0e30, tl.float32)
    sum = tl.zeros([SIDE, SIDE], tl.float32)
    for number in range(rounds):
        squared = tl.load(x + number * SIDE * SIDE + place)
        product = tl.dot(kept, squared * squared, input_precision="ieee")
        above = tl.maximum(largest, tl.max(product, 1))
        sum = sum + tl.dot(tl.exp2(product - above[:, None]), kept, input_precision="ieee")
        largest = above
    tl.store(y + place, sum + largest[:, None])


@triton.jit
def rows_kept(x, y, rounds, SIDE: tl.constexpr):
    place = tl.arange(0, SIDE)[:, None] * SIDE + tl.arange(0, SIDE)[None, :]
    kept = tl.load(x + place)
    sum = tl.zeros([SIDE, SIDE], tl.float32)
    for number in range(rounds):
        other = tl.load(x + number * SIDE * SIDE + place)
        weights = tl.exp2(tl.dot(kept, tl.trans(other), input_precision="ieee"))
        sum = sum + tl.dot(weights, other, input_precision="ieee")
    tl.store(y + place, sum)


_X = on_meta(torch.float32, 2**20)


def _control(why: str, kernel, unified_buffer: int = 0, **arguments) -> tuple[Compilation, ...]:
    return compilations(why, [Launch(kernel=kernel, grid=(1,), arguments=arguments, unified_buffer=unified_buffer)])


COMPILED = (
    *_control("4 MiB at once: more than the unified buffer", whole_rows, x=_X, y=_X, ROWS=256, WIDTH=4096),
    *_control("a logarithm in fp64: Triton-Ascend has none", in_double_precision, x=_X, y=_X, BLOCK=1024),
    *_control("rows that lie anywhere: loaded one by one, without their mask", scattered_rows,
              x=_X, y=_X, rows=70, HEADS=38, ROWS=128, WIDTH=64),
    *_control("a maximum after what vector cores made for a product: the cores take turns", tile_by_tile,
              x=_X, y=_X, rounds=70, SIDE=32),
    *_control("a product's rows are those of a sum that the cube core keeps: one vector core of two", rows_kept,
              x=_X, y=_X, rounds=70, SIDE=32),
    *_control("takes more of the unified buffer than it states", whole_rows, 4096, x=_X, y=_X, ROWS=4, WIDTH=1024),
)  # fmt: skip
