"""Joint attention in Triton for Ascend: as many programs as cube cores, each with the two vector cores beside it; the
cube core makes the products of a tile, the vector cores its softmax, and the compiler puts what they exchange into
memory between them. Formulas and their order are gpu_triton.py's: a running maximum and sum forward; backward one
kernel with a block of keys (d_k, d_v) and one with a block of queries (d_q), so that nothing is added with atomics.

Where a rotation is asked for, it happens inside: a tile of queries or keys is read as its two halves and turned on its
way to the cube core, which adds the second halves' product to the first ones' where it made it; gradients are kept as
halves and turned back where they are written. A key is so turned once for each block of queries (docs/ascend.md counts
that). Without a rotation nothing of it is compiled.

Heads are rows of E values with stride 1; others are copied first. Accumulators are added to outside `tl.dot`, and the
last block is not apart from the loop: as gpu_triton.py does both, the compiler finds no place for an accumulator.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ascend_memory import Live, Tile, check_product, cube_cores, shared_by, tile
from ..compilation import Compilation, Launch, compilations, on_meta, runs
from .operator import operator, tokens_first
from .triton_inputs import check, rows_together

_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)
_LOWEST = tl.constexpr(-1.0e30)
"""Below every score, and finite: the difference of two of them is zero and not NaN."""


@triton.jit
def _head(tensor, index, heads, batch_stride, head_stride):
    """Address of the first row of one head of one sample."""
    return tensor + (index // heads).to(tl.int64) * batch_stride + (index % heads).to(tl.int64) * head_stride


@triton.jit
def _read(base, start, tokens, row_stride, E: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """BLOCK rows from `start`, zero where there are none."""
    row = start + tl.arange(0, BLOCK)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    place = base + row.to(tl.int64) * row_stride + column
    return tl.load(place, mask=(row < tokens) & (column < E), other=0.0)


@triton.jit
def _write(base, values, start, tokens, row_stride, E: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    row = start + tl.arange(0, BLOCK)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    place = base + row.to(tl.int64) * row_stride + column
    tl.store(place, values.to(base.dtype.element_ty), mask=(row < tokens) & (column < E))


@triton.jit
def _rotation(cos, sin, start, S, R: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """Cosines and sines of BLOCK tokens from `start`: 1 and 0 after the S that turn."""
    row = start + tl.arange(0, BLOCK)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    place = row.to(tl.int64) * R + column
    turns = (row < S) & (column < R)
    return tl.load(cos + place, mask=turns, other=1.0), tl.load(sin + place, mask=turns, other=0.0)


@triton.jit
def _read_parts(
    base, cos, sin, start, tokens, S, row_stride, PART: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
    ROTATED: tl.constexpr,
):  # fmt: skip
    """Queries or keys as products take them: both halves of PART values, turned; else whole heads of PART values, and
    the second is not looked at."""
    first = _read(base, start, tokens, row_stride, PART, BLOCK, WIDTH)
    second = first
    if ROTATED:
        kind = first.dtype
        cosine, sine = _rotation(cos, sin, start, S, PART, BLOCK, WIDTH)
        second = _read(base + PART, start, tokens, row_stride, PART, BLOCK, WIDTH).to(tl.float32)
        first = first.to(tl.float32)
        turned = first * cosine - second * sine
        second = (second * cosine + first * sine).to(kind)
        first = turned.to(kind)
    return first, second


@triton.jit
def _write_parts(
    base, first, second, cos, sin, start, tokens, S, row_stride, PART: tl.constexpr, BLOCK: tl.constexpr,
    WIDTH: tl.constexpr, ROTATED: tl.constexpr,
):  # fmt: skip
    """The gradient of what `_read_parts` read, from that of what it returned."""
    if ROTATED:
        cosine, sine = _rotation(cos, sin, start, S, PART, BLOCK, WIDTH)
        turned = second * cosine - first * sine
        first = first * cosine + second * sine
        _write(base + PART, turned, start, tokens, row_stride, PART, BLOCK, WIDTH)
    _write(base, first, start, tokens, row_stride, PART, BLOCK, WIDTH)


@triton.jit
def _larger(one, other, ROTATED: tl.constexpr):
    """What `tl.maximum` adds for the sake of NaN keeps BiShengIR (1.2.0) from walking several tiles at once, cube core
    beside vector cores, in a loop that also rotates."""
    if ROTATED:
        return tl.where(other > one, other, one)
    else:  # noqa: RET505 - Triton compiles one of two branches only if both are written as such
        return tl.maximum(one, other)


@triton.jit(do_not_specialize=["Q", "J", "S", "heads", "blocks", "tasks", "programs"])
def _forward(
    q, k, v, cos, sin, out, lse, exponent, Q, J, S, heads, blocks, tasks, programs, q_batch, q_head, q_row, k_batch,
    k_head, k_row, v_batch, v_head, v_row, out_batch, out_head, out_row, E: tl.constexpr, WIDTH: tl.constexpr,
    PART: tl.constexpr, PART_WIDTH: tl.constexpr, ROTATED: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    for task in range(tl.program_id(0), tasks, programs):
        index, start_q = task // blocks, task % blocks * QUERIES
        k_start, v_start = _head(k, index, heads, k_batch, k_head), _head(v, index, heads, v_batch, v_head)
        q_start = _head(q, index, heads, q_batch, q_head)
        q_first, q_second = _read_parts(q_start, cos, sin, start_q, Q, S, q_row, PART, QUERIES, PART_WIDTH, ROTATED)
        acc_QE = tl.zeros([QUERIES, WIDTH], tl.float32)
        highest_Q = tl.full([QUERIES], _LOWEST, tl.float32)
        total_Q = tl.zeros([QUERIES], tl.float32)
        for start in range(0, J, KEYS):
            k_first, k_second = _read_parts(k_start, cos, sin, start, J, S, k_row, PART, KEYS, PART_WIDTH, ROTATED)
            s_QJ = tl.dot(q_first, tl.trans(k_first), input_precision="ieee")
            if ROTATED:
                s_QJ = s_QJ + tl.dot(q_second, tl.trans(k_second), input_precision="ieee")
            s_QJ = s_QJ * exponent
            s_QJ = tl.where((start + tl.arange(0, KEYS) < J)[None, :], s_QJ, _LOWEST)
            above_Q = _larger(highest_Q, tl.max(s_QJ, 1), ROTATED)
            p_QJ = tl.exp2(s_QJ - above_Q[:, None])
            fade_Q = tl.exp2(highest_Q - above_Q)
            total_Q = total_Q * fade_Q + tl.sum(p_QJ, 1)
            v_JE = _read(v_start, start, J, v_row, E, KEYS, WIDTH)
            acc_QE = acc_QE * fade_Q[:, None] + tl.dot(p_QJ.to(v_JE.dtype), v_JE, input_precision="ieee")
            highest_Q = above_Q
        out_start = _head(out, index, heads, out_batch, out_head)
        _write(out_start, acc_QE / total_Q[:, None], start_q, Q, out_row, E, QUERIES, WIDTH)
        row = start_q + tl.arange(0, QUERIES)
        lse_Q = (highest_Q + tl.log2(total_Q)) * _LN_2
        tl.store(lse + index.to(tl.int64) * Q + row, lse_Q, mask=row < Q)


@triton.jit(do_not_specialize=["Q", "heads", "blocks", "tasks", "programs"])
def _constants(
    out, d_out, lse, d_lse, lse2, delta, Q, heads, blocks, tasks, programs, out_batch, out_head, out_row, d_out_batch,
    d_out_head, d_out_row, E: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """lse / ln 2 and delta of every query."""
    for task in range(tl.program_id(0), tasks, programs):
        index, start = task // blocks, task % blocks * QUERIES
        row = start + tl.arange(0, QUERIES)
        place = index.to(tl.int64) * Q + row
        out_QE = _read(_head(out, index, heads, out_batch, out_head), start, Q, out_row, E, QUERIES, WIDTH)
        d_out_start = _head(d_out, index, heads, d_out_batch, d_out_head)
        d_out_QE = _read(d_out_start, start, Q, d_out_row, E, QUERIES, WIDTH)
        delta_Q = tl.sum(out_QE.to(tl.float32) * d_out_QE.to(tl.float32), 1)
        if d_lse is not None:
            delta_Q -= tl.load(d_lse + place, mask=row < Q, other=0.0)
        tl.store(delta + place, delta_Q, mask=row < Q)
        tl.store(lse2 + place, tl.load(lse + place, mask=row < Q, other=0.0) * _LOG2_E, mask=row < Q)


@triton.jit(do_not_specialize=["Q", "J", "S", "heads", "blocks", "tasks", "programs"])
def _keys(
    q, k, v, cos, sin, d_out, lse2, delta, d_k, d_v, scale, exponent, Q, J, S, heads, blocks, tasks, programs, q_batch,
    q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, d_out_batch, d_out_head, d_out_row, d_k_batch,
    d_k_head, d_k_row, E: tl.constexpr, WIDTH: tl.constexpr, PART: tl.constexpr, PART_WIDTH: tl.constexpr,
    ROTATED: tl.constexpr, KEYS: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """d_k and d_v of KEYS keys of one head. The two lie alike in memory. Scores lie as [Q, J], so that a query's
    constants are a column; what queries that do not exist add is zero, because their rows of q and d_out are."""
    for task in range(tl.program_id(0), tasks, programs):
        index, start_j = task // blocks, task % blocks * KEYS
        q_start = _head(q, index, heads, q_batch, q_head)
        d_out_start = _head(d_out, index, heads, d_out_batch, d_out_head)
        k_start = _head(k, index, heads, k_batch, k_head)
        k_first, k_second = _read_parts(k_start, cos, sin, start_j, J, S, k_row, PART, KEYS, PART_WIDTH, ROTATED)
        v_JE = _read(_head(v, index, heads, v_batch, v_head), start_j, J, v_row, E, KEYS, WIDTH)
        d_k_first = tl.zeros([KEYS, PART_WIDTH], tl.float32)
        d_k_second = tl.zeros([KEYS, PART_WIDTH], tl.float32)
        d_v_JE = tl.zeros([KEYS, WIDTH], tl.float32)
        for start in range(0, Q, QUERIES):
            row = start + tl.arange(0, QUERIES)
            place = index.to(tl.int64) * Q + row
            lse2_Q = tl.load(lse2 + place, mask=row < Q, other=0.0)
            delta_Q = tl.load(delta + place, mask=row < Q, other=0.0)
            q_first, q_second = _read_parts(q_start, cos, sin, start, Q, S, q_row, PART, QUERIES, PART_WIDTH, ROTATED)
            d_out_QE = _read(d_out_start, start, Q, d_out_row, E, QUERIES, WIDTH)
            s_QJ = tl.dot(q_first, tl.trans(k_first), input_precision="ieee")
            if ROTATED:
                s_QJ = s_QJ + tl.dot(q_second, tl.trans(k_second), input_precision="ieee")
            p_QJ = tl.exp2(s_QJ * exponent - lse2_Q[:, None])
            d_p_QJ = tl.dot(d_out_QE, tl.trans(v_JE), input_precision="ieee")
            d_s_QJ = p_QJ * (d_p_QJ - delta_Q[:, None])
            d_v_JE = d_v_JE + tl.dot(tl.trans(p_QJ.to(d_out_QE.dtype)), d_out_QE, input_precision="ieee")
            d_k_first = d_k_first + tl.dot(tl.trans(d_s_QJ.to(q_first.dtype)), q_first, input_precision="ieee")
            if ROTATED:
                d_k_second = d_k_second + tl.dot(tl.trans(d_s_QJ.to(q_first.dtype)), q_second, input_precision="ieee")
        d_k_start = _head(d_k, index, heads, d_k_batch, d_k_head)
        _write_parts(
            d_k_start, d_k_first * scale, d_k_second * scale, cos, sin, start_j, J, S, d_k_row, PART, KEYS, PART_WIDTH,
            ROTATED,
        )  # fmt: skip
        _write(_head(d_v, index, heads, d_k_batch, d_k_head), d_v_JE, start_j, J, d_k_row, E, KEYS, WIDTH)


@triton.jit(do_not_specialize=["Q", "J", "S", "heads", "blocks", "tasks", "programs"])
def _queries(
    q, k, v, cos, sin, d_out, lse2, delta, d_q, scale, exponent, Q, J, S, heads, blocks, tasks, programs, q_batch,
    q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, d_out_batch, d_out_head, d_out_row, d_q_batch,
    d_q_head, d_q_row, E: tl.constexpr, WIDTH: tl.constexpr, PART: tl.constexpr, PART_WIDTH: tl.constexpr,
    ROTATED: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """d_q of QUERIES queries of one head. A key that does not exist is a zero row, but its p is not: it could overflow
    and is taken away.

    Scores lie as [J, Q] and a query's constants are read for each tile: both the compiler needs to give each of the two
    vector cores half of the keys. Else one does all and the other waits."""
    for task in range(tl.program_id(0), tasks, programs):
        index, start_q = task // blocks, task % blocks * QUERIES
        k_start, v_start = _head(k, index, heads, k_batch, k_head), _head(v, index, heads, v_batch, v_head)
        row = start_q + tl.arange(0, QUERIES)
        place = index.to(tl.int64) * Q + row
        q_start = _head(q, index, heads, q_batch, q_head)
        q_first, q_second = _read_parts(q_start, cos, sin, start_q, Q, S, q_row, PART, QUERIES, PART_WIDTH, ROTATED)
        d_out_start = _head(d_out, index, heads, d_out_batch, d_out_head)
        d_out_QE = _read(d_out_start, start_q, Q, d_out_row, E, QUERIES, WIDTH)
        d_q_first = tl.zeros([QUERIES, PART_WIDTH], tl.float32)
        d_q_second = tl.zeros([QUERIES, PART_WIDTH], tl.float32)
        for start in range(0, J, KEYS):
            k_first, k_second = _read_parts(k_start, cos, sin, start, J, S, k_row, PART, KEYS, PART_WIDTH, ROTATED)
            v_JE = _read(v_start, start, J, v_row, E, KEYS, WIDTH)
            lse2_Q = tl.load(lse2 + place, mask=row < Q, other=0.0)
            delta_Q = tl.load(delta + place, mask=row < Q, other=0.0)
            s_JQ = tl.dot(k_first, tl.trans(q_first), input_precision="ieee")
            if ROTATED:
                s_JQ = s_JQ + tl.dot(k_second, tl.trans(q_second), input_precision="ieee")
            s_JQ = s_JQ * exponent
            s_JQ = tl.where((start + tl.arange(0, KEYS) < J)[:, None], s_JQ, _LOWEST)
            p_JQ = tl.exp2(s_JQ - lse2_Q[None, :])
            d_p_JQ = tl.dot(v_JE, tl.trans(d_out_QE), input_precision="ieee")
            d_s_JQ = p_JQ * (d_p_JQ - delta_Q[None, :])
            d_q_first = d_q_first + tl.dot(tl.trans(d_s_JQ.to(k_first.dtype)), k_first, input_precision="ieee")
            if ROTATED:
                d_q_second = d_q_second + tl.dot(tl.trans(d_s_JQ.to(k_first.dtype)), k_second, input_precision="ieee")
        d_q_start = _head(d_q, index, heads, d_q_batch, d_q_head)
        _write_parts(
            d_q_start, d_q_first * scale, d_q_second * scale, cos, sin, start_q, Q, S, d_q_row, PART, QUERIES,
            PART_WIDTH, ROTATED,
        )  # fmt: skip


_CONSTANTS = Live(streamed=2, work=3)
"""out and d_out; both in fp32 and their product."""
_SOFTMAX = Live(streamed=1, work=4)
"""Of half a tile of scores, which one of a cube core's two vector cores takes: p as it goes to the cube core; scores,
p, their gradient and a product. What the two exchange is the compiler's to plan."""
_ROTATION = Live(streamed=2, casts=2, work=6)
"""Of half a tile of queries or keys, as halves of heads: both on their way, turned ones over them; cosine and sine,
which stream in fp32; two products. They are gone when a tile of scores comes."""


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """Rows of the side that a program keeps, and of the side that it walks over, at a time."""

    own: int
    other: int
    width: int
    """Columns of a head."""
    half: int
    """Columns of half a head; 0 where nothing rotates."""
    dtype: torch.dtype
    operands: int
    """Tiles that the kernel's products take their operands from: queries, keys, values, p and so on."""

    def __post_init__(self):
        name, item = "joint_attention by npu_triton", self.dtype.itemsize
        width = max(self.width, 2 * self.half)
        for columns, depth in ((self.other, width), (width, self.other)):
            check_product(name, self.own, columns, depth, self.dtype, self.operands)
        Tile(kernel=name, rows=self.own // 2, columns=self.other, live=_SOFTMAX, item=item)
        if self.half:
            Tile(kernel=name, rows=max(self.own, self.other) // 2, columns=self.half, live=_ROTATION, item=item)


_FORWARD, _KEYS, _QUERIES = "forward", "keys", "queries"
_TILES = {
    64: {_FORWARD: (128, 128), _KEYS: (128, 128), _QUERIES: (128, 128)},
    128: {_FORWARD: (128, 128), _KEYS: (64, 64), _QUERIES: (128, 128)},
}
"""(own, other) by the widest head, in 16 bits: the largest that the compiler finds memory for, rotated heads included.
Nothing is measured: there is no NPU at hand."""
_EXACT_TILE = (32, 32)
"""In fp32, for comparison and not for speed."""


def tiling(dtype: torch.dtype, width: int, part: str, rotated: bool = False) -> Tiling:
    own, other = _TILES[min(size for size in _TILES if size >= width)][part]
    if dtype == torch.float32:
        own, other = _EXACT_TILE
    half = _padded(width // 2) if rotated else 0
    operands = 4 if part == _FORWARD else 6
    return Tiling(own=own, other=other, width=_padded(width), half=half, dtype=dtype, operands=operands)


def forward(q_BHQE, k_BHJE, v_BHJE, scale, out_BHQE, lse_BHQ) -> Iterator[Launch]:
    yield from rotating_forward(q_BHQE, k_BHJE, v_BHJE, None, None, scale, out_BHQE, lse_BHQ)


def backward(
    d_out_BHQE, d_lse_BHQ, q_BHQE, k_BHJE, v_BHJE, out_BHQE, lse_BHQ, scale, d_q_BHQE, d_k_BHJE, d_v_BHJE
) -> Iterator[Launch]:
    given = (d_out_BHQE, d_lse_BHQ, q_BHQE, k_BHJE, v_BHJE)
    yield from rotating_backward(*given, None, None, out_BHQE, lse_BHQ, scale, d_q_BHQE, d_k_BHJE, d_v_BHJE)


def rotating_forward(q_BHQE, k_BHJE, v_BHJE, cos_SR, sin_SR, scale, out_BHQE, lse_BHQ) -> Iterator[Launch]:
    """Without tables it rotates nothing, and nothing of it is compiled."""
    check("npu_triton", q_BHQE, scale)
    batch, heads, queries, width = q_BHQE.shape
    tiled = tiling(q_BHQE.dtype, width, _FORWARD, cos_SR is not None)
    q_BHQE, k_BHJE, v_BHJE = map(rows_together, (q_BHQE, k_BHJE, v_BHJE))
    yield Launch(
        kernel=_forward,
        **_share(q_BHQE, batch * heads, triton.cdiv(queries, tiled.own), {
            "q": q_BHQE, "k": k_BHJE, "v": v_BHJE, "out": out_BHQE, "lse": lse_BHQ, "exponent": scale * _LOG2_E.value,
            "Q": queries, "J": k_BHJE.shape[2], "heads": heads, **_strides(q=q_BHQE, k=k_BHJE, v=v_BHJE, out=out_BHQE),
            "E": width, "WIDTH": tiled.width, **_rotated(width, cos_SR, sin_SR), "QUERIES": tiled.own,
            "KEYS": tiled.other,
        }),
    )  # fmt: skip


def rotating_backward(
    d_out_BHQE, d_lse_BHQ, q_BHQE, k_BHJE, v_BHJE, cos_SR, sin_SR, out_BHQE, lse_BHQ, scale, d_q_BHQE, d_k_BHJE,
    d_v_BHJE,
) -> Iterator[Launch]:  # fmt: skip
    batch, heads, queries, width = q_BHQE.shape
    keys, is_rotated = k_BHJE.shape[2], cos_SR is not None
    assert d_k_BHJE.stride() == d_v_BHJE.stride(), "operator.py allocates the two alike"
    d_out_BHQE, q_BHQE, k_BHJE, v_BHJE, out_BHQE = map(rows_together, (d_out_BHQE, q_BHQE, k_BHJE, v_BHJE, out_BHQE))
    lse2, delta = q_BHQE.new_empty(2, batch * heads, queries, dtype=torch.float32)
    rows = tile("joint_attention by npu_triton", _CONSTANTS, _padded(width), q_BHQE.dtype, most=64)
    yield Launch(
        kernel=_constants,
        **_share(q_BHQE, batch * heads, triton.cdiv(queries, rows.rows), {
            "out": out_BHQE, "d_out": d_out_BHQE, "lse": lse_BHQ.contiguous(),
            "d_lse": None if d_lse_BHQ is None else d_lse_BHQ.contiguous(), "lse2": lse2, "delta": delta,
            "Q": queries, "heads": heads, **_strides(out=out_BHQE, d_out=d_out_BHQE), "E": width,
            "WIDTH": rows.columns, "QUERIES": rows.rows,
        }),
        unified_buffer=rows.bytes,
    )  # fmt: skip
    shared = {
        "q": q_BHQE, "k": k_BHJE, "v": v_BHJE, "d_out": d_out_BHQE, "lse2": lse2, "delta": delta, "scale": scale,
        "exponent": scale * _LOG2_E.value, "Q": queries, "J": keys, "heads": heads,
        **_strides(q=q_BHQE, k=k_BHJE, v=v_BHJE, d_out=d_out_BHQE), "E": width, "WIDTH": rows.columns,
        **_rotated(width, cos_SR, sin_SR),
    }  # fmt: skip
    tiled = tiling(q_BHQE.dtype, width, _KEYS, is_rotated)
    yield Launch(
        kernel=_keys,
        **_share(q_BHQE, batch * heads, triton.cdiv(keys, tiled.own), shared | {
            "d_k": d_k_BHJE, "d_v": d_v_BHJE, **_strides(d_k=d_k_BHJE), "KEYS": tiled.own, "QUERIES": tiled.other,
        }),
    )  # fmt: skip
    tiled = tiling(q_BHQE.dtype, width, _QUERIES, is_rotated)
    yield Launch(
        kernel=_queries,
        **_share(q_BHQE, batch * heads, triton.cdiv(queries, tiled.own), shared | {
            "d_q": d_q_BHQE, **_strides(d_q=d_q_BHQE), "QUERIES": tiled.own, "KEYS": tiled.other,
        }),
    )  # fmt: skip


def _rotated(width: int, cos_SR: Tensor | None, sin_SR: Tensor | None) -> dict:
    """The tables, read as whole rows, and the values of a head that are read together."""
    if cos_SR is None:
        return {"cos": None, "sin": None, "S": None, "PART": width, "PART_WIDTH": _padded(width), "ROTATED": False}
    half = width // 2
    tables = {"cos": cos_SR.contiguous(), "sin": sin_SR.contiguous(), "S": cos_SR.shape[0]}
    return tables | {"PART": half, "PART_WIDTH": _padded(half), "ROTATED": True}


def _share(like: Tensor, heads: int, blocks: int, arguments: dict) -> dict:
    """Grid and arguments of programs that share the blocks of all heads; those of one head follow each other."""
    programs = shared_by(cube_cores(like), heads * blocks)
    counts = {"blocks": blocks, "tasks": heads * blocks, "programs": programs}
    return {"grid": (programs,), "arguments": arguments | counts}


def _strides(**tensors: Tensor) -> dict[str, int]:
    names = ("batch", "head", "row")
    return {
        f"{name}_{axis}": stride
        for name, tensor in tensors.items()
        for axis, stride in zip(names, tensor.stride(), strict=False)
    }


def _padded(width: int) -> int:
    return max(16, triton.next_power_of_2(width))  # a cube core's products are of 16 x 16


joint_attention = operator(
    "npu_triton", runs(forward), runs(backward), rotating=(runs(rotating_forward), runs(rotating_backward))
)


def _compiled(dtype: torch.dtype, batch: int, tokens: int, heads: int, width: int) -> Iterator[Compilation]:
    tokens_BHSE = tokens_first(on_meta(dtype, batch, heads, tokens, width))
    lse_BHQ, label = on_meta(torch.float32, batch, heads, tokens), f"B {batch}, E {width}, {dtype}"
    inputs = (tokens_BHSE,) * 3
    yield from compilations(label, forward(*inputs, 0.125, tokens_BHSE, lse_BHQ))
    given = (*inputs, tokens_BHSE, lse_BHQ, 0.125, *inputs)
    yield from compilations(label, backward(tokens_BHSE, None, *given))
    yield from compilations(f"{label}, d_lse", list(backward(tokens_BHSE, lse_BHQ, *given))[:1])
    tables = (on_meta(torch.float32, tokens - 7, width // 2),) * 2
    label = f"{label}, rotated"
    yield from compilations(label, rotating_forward(*inputs, *tables, 0.125, tokens_BHSE, lse_BHQ))
    given = (*inputs, *tables, tokens_BHSE, lse_BHQ, 0.125, *inputs)
    yield from compilations(label, list(rotating_backward(tokens_BHSE, None, *given))[1:])


COMPILED = tuple(
    each
    for dtype, *sizes in (
        (torch.bfloat16, 1, 41805, 38, 64),
        (torch.float16, 1, 41805, 38, 64),
        (torch.float32, 1, 41805, 38, 64),
        (torch.bfloat16, 1, 41805, 19, 128),
        (torch.bfloat16, 3, 22, 5, 14),
    )
    for each in _compiled(dtype, *sizes)
)
