"""Many tensors in one launch: lists of tensors of any sizes, cut into pieces that programs take one each.

A table on the device says for each piece where it begins in every list and how many values it has. It is made anew for
each call, on the host and in pinned memory, so that the host never waits: half a millisecond for a thousand tensors,
which the device spends on what was launched before.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import sent_to

CHUNK = 2**16
"""Values of a piece: few enough that a device has thousands of pieces, many enough that their table is nothing."""


def chunk_table(*lists: Sequence[Tensor]) -> Tensor:
    """int64 [lists + 1, pieces]: a row of addresses for each list, then the counts. Tensor i of every list has the same
    number of values, dense in memory; those of one list have one dtype."""
    return sent_to(lists[0][0].device, _pieces(lists))


def offset_table(*lists: Sequence[Tensor]) -> Tensor:
    """The same, but instead of an address a piece has its distance, in values, from the first tensor of its list: for
    a compiler that makes no pointer of an integer. Memory is one space; that the distance leaves the tensor is known
    to nobody but us."""
    table = _pieces(lists)
    for row, tensors in zip(table, lists, strict=False):  # the last row holds counts
        size = tensors[0].element_size()
        row.sub_(tensors[0].data_ptr())
        assert not (row % size).any(), "every tensor begins at a multiple of its values' size"
        row.floor_divide_(size)
    return sent_to(lists[0][0].device, table)


def _pieces(lists: Sequence[Sequence[Tensor]]) -> Tensor:
    counts = torch.tensor([tensor.numel() for tensor in lists[0]], dtype=torch.int64)
    pieces = (counts + CHUNK - 1) // CHUNK
    index = torch.repeat_interleave(pieces)
    first = (torch.arange(len(index)) - (pieces.cumsum(0) - pieces)[index]) * CHUNK
    rows = []
    for tensors in lists:
        addresses = torch.tensor([tensor.data_ptr() for tensor in tensors], dtype=torch.int64)
        rows.append(addresses[index] + first * tensors[0].element_size())
    return torch.stack([*rows, (counts[index] - first).clamp(max=CHUNK)])


def kind_of(tensor: Tensor) -> tl.dtype:
    """Triton's name for a tensor's dtype."""
    return _KINDS[tensor.dtype]


_KINDS = {
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


@triton.jit
def places(pointer, offsets, ALIGNED: tl.constexpr):
    """pointer + offsets. ALIGNED says that pointer is a multiple of 16 bytes: Triton cannot know that of an address out
    of a table, and heeds it only where a block of pointers is made."""
    result = pointer + offsets
    if ALIGNED:
        result = tl.multiple_of(result, 16)
    return result


@triton.jit
def piece_of(table, row, pieces, KIND: tl.constexpr):
    """Where a piece begins in the list of this row."""
    return tl.load(table + row * pieces + tl.program_id(0)).to(tl.pointer_type(KIND))
