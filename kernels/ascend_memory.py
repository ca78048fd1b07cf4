"""The memories of an Ascend core, and tiles cut to them.

A vector core computes on tiles in its unified buffer (UB); the copy engines bring the next tile and take the last one
away meanwhile, so what streams is there twice. A cube core multiplies what it finds in L0A and L0B into L0C and is fed
through L1. Few programs, one a core, loop over the tiles.

Sizes and counts: BiShengIR's own description of each chip, which it writes into every module it compiles
(hacc.target_device_spec, ascendnpu-ir 1.2.0; the lowering gate compares each time). Imports no Triton.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

_KIB = 1024
_FLOAT = 4
"""Bytes of a value between load and store: everything is computed in fp32."""


@dataclass(frozen=True, kw_only=True)
class Chip:
    """Cores of a chip and bytes of each core's memories."""

    vector_cores: int
    cube_cores: int
    unified_buffer: int = 192 * _KIB
    l1: int = 512 * _KIB
    l0a: int = 64 * _KIB
    l0b: int = 64 * _KIB
    l0c: int = 128 * _KIB
    alignment: int = 32
    """Bytes; a row that is no multiple of them takes the next one in the unified buffer."""


CHIPS: Mapping[str, Chip] = MappingProxyType(
    {
        "Ascend910B1": Chip(vector_cores=48, cube_cores=24),
        "Ascend910B3": Chip(vector_cores=40, cube_cores=20),
        "Ascend910B4": Chip(vector_cores=40, cube_cores=20),
        "Ascend910_9382": Chip(vector_cores=48, cube_cores=24),
    }
)
EVERY = Chip(**{name: min(getattr(chip, name) for chip in CHIPS.values()) for name in Chip.__dataclass_fields__})
"""The least that any of them has: tiles are cut to it, so that one configuration runs on all."""
_SINGLES = 8
"""Tiles of one value a row, such as its mean: each value takes what the memory is aligned to."""
_SCALARS = _KIB
"""Bytes for single values and for what tiles of no round size leave between them."""
_WITHOUT = 3
"""Programs where there is no NPU: a few, so that work is shared and goes on in several rounds."""


@dataclass(frozen=True, kw_only=True)
class Live:
    """The tiles that a vector kernel holds at once.

    Counted from the kernel's lines and corrected by what BiShengIR's memory plan takes: the lowering gate fails a
    kernel that takes more than it states.
    """

    streamed: int
    """In the tokens' dtype, on their way from or to memory while the others are computed on: two of each."""
    casts: int = 0
    """Streamed ones that are there in fp32 besides, if the tokens have 16 bits."""
    work: int = 0
    """fp32, between load and store, sums that a loop carries among them."""
    once: int = 0
    """fp32, but of one row: rows of modulation, sums over rows."""

    def bytes(self, rows: int, columns: int, item: int, alignment: int = EVERY.alignment) -> int:
        """What they take with `rows` x `columns` values each, streamed ones of `item` bytes a value."""

        def row(size: int) -> int:
            return -(-columns * size // alignment) * alignment

        work = self.work + (self.casts if item < _FLOAT else 0)
        tiles = rows * (2 * self.streamed * row(item) + work * row(_FLOAT)) + self.once * row(_FLOAT)
        return tiles + rows * _SINGLES * alignment + _SCALARS


@dataclass(frozen=True, kw_only=True)
class Tile:
    """Rows and columns of every tile of a vector kernel."""

    kernel: str
    rows: int
    columns: int
    live: Live
    item: int
    chip: Chip = EVERY

    @property
    def bytes(self) -> int:
        """Of the unified buffer, by the formula."""
        return self.live.bytes(self.rows, self.columns, self.item, self.chip.alignment)

    def __post_init__(self):
        takes, allowed = self.bytes, self.chip.unified_buffer
        if takes > allowed:
            raise ValueError(
                f"{self.kernel}: {self.rows} rows of {self.columns} values take {takes} bytes of the unified buffer "
                f"({self.live}, {self.item} bytes a value); a core has {allowed}: take fewer rows or columns, or "
                "another backend for rows this wide"
            )


def tile(kernel: str, live: Live, columns: int, dtype: torch.dtype, most: int, chip: Chip = EVERY) -> Tile:
    """The most rows, a power of two up to `most`, that fit.

    Raises:
        ValueError: not even one row fits.
    """
    rows = 1 << max(most, 1).bit_length() - 1
    while rows > 1 and live.bytes(rows, columns, dtype.itemsize) > chip.unified_buffer:
        rows //= 2
    return Tile(kernel=kernel, rows=rows, columns=columns, live=live, item=dtype.itemsize, chip=chip)


def column_block(width: int) -> int:
    """Columns of a tile where a kernel need not hold whole rows: 512 of bf16 are a KiB for the copy engine, and five
    blocks of the 8B model's 2432 leave a twentieth of the lanes idle."""
    return min(512, 1 << (width - 1).bit_length())


def whole_row(head: int, tail: int) -> int:
    """Columns of a tile that holds rows in two parts: the tail's take 32 bytes at least, in 16 bits too."""
    return head + max(tail, 16)


def check_product(
    kernel: str, rows: int, columns: int, depth: int, dtype: torch.dtype, operands: int, chip: Chip = EVERY
) -> None:
    """Whether a cube core takes [rows, depth] x [depth, columns], with all `operands` of the kernel's products in L1.

    L0A and L0B hold an operand while the next one comes; L0C a result until it is taken away.

    Raises:
        ValueError: with what was given, what is there, what to change.
    """
    item = dtype.itemsize
    takes = {
        "l0a": 2 * rows * depth * item,
        "l0b": 2 * columns * depth * item,
        "l0c": rows * columns * _FLOAT,
        "l1": 2 * operands * max(rows, columns) * depth * item,
    }
    for memory, size in takes.items():
        if size > getattr(chip, memory):
            raise ValueError(
                f"{kernel}: a product of {rows} x {depth} and {depth} x {columns} values of {item} bytes takes {size} "
                f"bytes of {memory.upper()}; a core has {getattr(chip, memory)}: take fewer rows or columns"
            )


def vector_cores(like: Tensor) -> int:
    """Vector cores of a tensor's device; a few where kernels are interpreted or only compiled."""
    return _cores(like, "num_vectorcore")


def cube_cores(like: Tensor) -> int:
    """Cube cores of a tensor's device, each with two vector cores beside it."""
    return _cores(like, "num_aicore")


def _cores(like: Tensor, name: str) -> int:
    if like.device.type != "npu":
        return _WITHOUT
    from triton.runtime import driver

    return driver.active.utils.get_device_properties(like.device.index or 0)[name]


def shared_by(most: int, units: int, groups: int = 1) -> int:
    """Programs for each of `groups` (samples, blocks of columns): as many as cores, no more than units of work."""
    return max(1, min(most // groups, units))
