"""Joint attention in Triton: the scores of a tile live in registers only, forward and backward.

The forward is FlashAttention-2's (arXiv 2307.08691, algorithm 1): a program keeps a block of queries and walks over the
keys with a running maximum and sum. The backward is two kernels, so that nothing is added with atomics and two runs
give the same bits: one keeps a block of keys and walks over the queries (d_k, d_v), one keeps a block of queries and
walks over the keys (d_q). That is 7 matrix products where atomics would need 5. A third, small one prepares each
query's two constants, lse in base 2 and delta = sum(out * d_out) - d_lse.

Exponentials are base 2: exp(scale s - lse) = exp2(s * exponent - lse2) with exponent = scale log2(e) is one fused
multiply-add and one instruction of the special function unit, which at head width 64 is what bounds the forward.

Tiles come through tensor descriptors (Hopper's copy engine) where the strides allow it: 16-byte multiples, the last one
1. Other strides are read through pointers; a last stride other than 1 is copied first.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..compilation import Compilation, Launch, on_meta
from .operator import operator
from .triton_inputs import check, rows_together

_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)
_PADDING = 256
"""The constants of queries are stored for a multiple of this many queries: no block of them is larger."""
_CONSTANTS_BLOCK = 64


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How one kernel cuts its work."""

    own: int
    """Rows of the side that a program keeps: queries of forward and d_q, keys of d_k and d_v."""
    other: int
    """Rows of the side that it walks over, at a time."""
    warps: int
    stages: int
    """Blocks of the other side on their way at once."""
    described: bool = False
    """Tiles come through tensor descriptors where the strides allow it."""


@dataclass(frozen=True, kw_only=True)
class Tilings:
    forward: Tiling
    keys: Tiling
    queries: Tiling


# ---- tiles of one head ---------------------------------------------------------------------------------------------


@triton.jit
def _head(tensor, index, heads, batch_stride, head_stride):
    """Address of the first row of one head of one sample."""
    return tensor + (index // heads).to(tl.int64) * batch_stride + (index % heads).to(tl.int64) * head_stride


@triton.jit
def _open(base, tokens, row_stride, E: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, DESCRIBED: tl.constexpr):
    """What `_read` reads blocks of rows from: a descriptor of the [tokens, E] matrix, or its address."""
    if DESCRIBED:
        return tl.make_tensor_descriptor(base, shape=[tokens, E], strides=[row_stride, 1], block_shape=[BLOCK, WIDTH])
    else:  # noqa: RET505 - Triton compiles one of two branches only if both are written as such
        return base


@triton.jit
def _addresses(base, start, row_stride, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    rows = tl.cast(start, tl.int64) + tl.arange(0, BLOCK)  # a row is B*H*E values from the next: 32 bits can overflow
    return base + rows[:, None] * row_stride + tl.arange(0, WIDTH)[None, :]


@triton.jit
def _inside(start, tokens, E: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    return (start + tl.arange(0, BLOCK)[:, None] < tokens) & (tl.arange(0, WIDTH)[None, :] < E)


@triton.jit
def _read(
    source, start, tokens, row_stride,
    E: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, PARTIAL: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """BLOCK rows from `start`, zero where there are none. PARTIAL: the rows may end inside the block."""
    if DESCRIBED:
        return source.load([start, 0])  # zero outside by itself
    elif PARTIAL or E != WIDTH:  # noqa: RET505
        mask = _inside(start, tokens, E, BLOCK, WIDTH)
        return tl.load(_addresses(source, start, row_stride, BLOCK, WIDTH), mask=mask, other=0.0)
    else:
        return tl.load(_addresses(source, start, row_stride, BLOCK, WIDTH))


@triton.jit
def _write(base, values, start, tokens, row_stride, E: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    addresses = _addresses(base, start, row_stride, BLOCK, WIDTH)
    tl.store(addresses, values.to(base.dtype.element_ty), mask=_inside(start, tokens, E, BLOCK, WIDTH))


@triton.jit
def _open_row(base, length, BLOCK: tl.constexpr, DESCRIBED: tl.constexpr):
    """The same for one number a token; its length is a multiple of BLOCK."""
    if DESCRIBED:
        return tl.make_tensor_descriptor(base, shape=[length], strides=[1], block_shape=[BLOCK])
    else:  # noqa: RET505
        return base


@triton.jit
def _read_row(source, start, BLOCK: tl.constexpr, DESCRIBED: tl.constexpr):
    if DESCRIBED:
        return source.load([start])
    else:  # noqa: RET505
        return tl.load(source + start + tl.arange(0, BLOCK))


# ---- forward --------------------------------------------------------------------------------------------------------


@triton.jit
def _attend(
    q_QE, k, v, acc_QE, highest_Q, total_Q, start, J, k_row, v_row, exponent,
    E: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, PARTIAL: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """One block of keys. PARTIAL: the keys end inside it, the only place where a mask is needed."""
    k_JE = _read(k, start, J, k_row, E, KEYS, WIDTH, PARTIAL, DESCRIBED)
    s_QJ = tl.dot(q_QE, k_JE.T, input_precision="ieee")
    if PARTIAL:
        s_QJ = tl.where((start + tl.arange(0, KEYS) < J)[None, :], s_QJ, float("-inf"))
    above_Q = tl.maximum(highest_Q, tl.max(s_QJ, 1) * exponent)
    p_QJ = tl.exp2(s_QJ * exponent - above_Q[:, None])
    fade_Q = tl.exp2(highest_Q - above_Q)
    v_JE = _read(v, start, J, v_row, E, KEYS, WIDTH, PARTIAL, DESCRIBED)
    acc_QE = tl.dot(p_QJ.to(v_JE.dtype), v_JE, acc_QE * fade_Q[:, None], input_precision="ieee")
    return acc_QE, above_Q, total_Q * fade_Q + tl.sum(p_QJ, 1)


@triton.jit
def _forward_kernel(
    q, k, v, out, lse, exponent, Q, J, heads,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, out_batch, out_head, out_row,
    E: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    DESCRIBED: tl.constexpr,
):  # fmt: skip
    """One program: QUERIES queries of one head. Blocks of one head follow each other, so its keys stay in L2."""
    blocks = tl.cdiv(Q, QUERIES)
    start_q = tl.program_id(0) % blocks * QUERIES
    index = tl.program_id(0) // blocks
    q = _open(_head(q, index, heads, q_batch, q_head), Q, q_row, E, QUERIES, WIDTH, DESCRIBED)
    k = _open(_head(k, index, heads, k_batch, k_head), J, k_row, E, KEYS, WIDTH, DESCRIBED)
    v = _open(_head(v, index, heads, v_batch, v_head), J, v_row, E, KEYS, WIDTH, DESCRIBED)
    q_QE = _read(q, start_q, Q, q_row, E, QUERIES, WIDTH, True, DESCRIBED)
    acc_QE = tl.zeros([QUERIES, WIDTH], tl.float32)
    highest_Q = tl.full([QUERIES], float("-inf"), tl.float32)
    total_Q = tl.zeros([QUERIES], tl.float32)
    whole = J // KEYS * KEYS
    for start in range(0, whole, KEYS):
        acc_QE, highest_Q, total_Q = _attend(
            q_QE, k, v, acc_QE, highest_Q, total_Q, start, J, k_row, v_row, exponent, E, KEYS, WIDTH, False, DESCRIBED
        )
    if whole < J:
        acc_QE, highest_Q, total_Q = _attend(
            q_QE, k, v, acc_QE, highest_Q, total_Q, whole, J, k_row, v_row, exponent, E, KEYS, WIDTH, True, DESCRIBED
        )
    _write(
        _head(out, index, heads, out_batch, out_head), acc_QE / total_Q[:, None], start_q, Q, out_row, E, QUERIES, WIDTH
    )
    rows = start_q + tl.arange(0, QUERIES)
    lse_Q = (highest_Q + tl.log2(total_Q)) * _LN_2
    tl.store(lse + index.to(tl.int64) * Q + rows, lse_Q, mask=rows < Q)


# ---- backward -------------------------------------------------------------------------------------------------------


@triton.jit
def _constants_kernel(
    out, d_out, lse, d_lse, lse2, delta, Q, padded, heads,
    out_batch, out_head, out_row, d_out_batch, d_out_head, d_out_row,
    E: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """lse / ln 2 and delta of every query. Past the last query they are such that p = exp2(0 - inf) = 0 there."""
    blocks = padded // QUERIES
    start = tl.program_id(0) % blocks * QUERIES
    index = tl.program_id(0) // blocks
    row = index.to(tl.int64)
    rows = start + tl.arange(0, QUERIES)
    exists = rows < Q
    out = _head(out, index, heads, out_batch, out_head)
    d_out = _head(d_out, index, heads, d_out_batch, d_out_head)
    out_QE = _read(out, start, Q, out_row, E, QUERIES, WIDTH, True, False).to(tl.float32)
    d_out_QE = _read(d_out, start, Q, d_out_row, E, QUERIES, WIDTH, True, False).to(tl.float32)
    delta_Q = tl.sum(out_QE * d_out_QE, 1)
    if d_lse is not None:
        delta_Q -= tl.load(d_lse + row * Q + rows, mask=exists, other=0.0)
    lse_Q = tl.load(lse + row * Q + rows, mask=exists, other=float("inf"))
    tl.store(delta + row * padded + rows, delta_Q)
    tl.store(lse2 + row * padded + rows, lse_Q * _LOG2_E)


@triton.jit
def _gather(
    k_JE, v_JE, q, d_out, lse2, delta, d_k_JE, d_v_JE, start, Q, q_row, d_out_row, exponent,
    E: tl.constexpr, QUERIES: tl.constexpr, WIDTH: tl.constexpr, PARTIAL: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """One block of queries. Scores lie as [J, Q], so that they are the left operand of both sums over queries.

    Needs no mask: queries that do not exist are zero rows, and their p is zero.
    """
    q_QE = _read(q, start, Q, q_row, E, QUERIES, WIDTH, PARTIAL, DESCRIBED)
    d_out_QE = _read(d_out, start, Q, d_out_row, E, QUERIES, WIDTH, PARTIAL, DESCRIBED)
    lse2_Q = _read_row(lse2, start, QUERIES, DESCRIBED)
    delta_Q = _read_row(delta, start, QUERIES, DESCRIBED)
    s_JQ = tl.dot(k_JE, q_QE.T, input_precision="ieee")
    d_p_JQ = tl.dot(v_JE, d_out_QE.T, input_precision="ieee")
    p_JQ = tl.exp2(s_JQ * exponent - lse2_Q[None, :])
    d_v_JE = tl.dot(p_JQ.to(d_out_QE.dtype), d_out_QE, d_v_JE, input_precision="ieee")
    d_s_JQ = p_JQ * (d_p_JQ - delta_Q[None, :])
    d_k_JE = tl.dot(d_s_JQ.to(q_QE.dtype), q_QE, d_k_JE, input_precision="ieee")
    return d_k_JE, d_v_JE


@triton.jit
def _keys_kernel(
    q, k, v, d_out, lse2, delta, d_k, d_v, scale, exponent, Q, padded, J, heads,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, d_out_batch, d_out_head, d_out_row,
    d_k_batch, d_k_head, d_k_row,
    E: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr, QUERIES: tl.constexpr,
    DESCRIBED: tl.constexpr,
):  # fmt: skip
    """d_k and d_v of KEYS keys of one head. The two lie alike in memory."""
    blocks = tl.cdiv(J, KEYS)
    start_j = tl.program_id(0) % blocks * KEYS
    index = tl.program_id(0) // blocks
    q = _open(_head(q, index, heads, q_batch, q_head), Q, q_row, E, QUERIES, WIDTH, DESCRIBED)
    d_out = _open(_head(d_out, index, heads, d_out_batch, d_out_head), Q, d_out_row, E, QUERIES, WIDTH, DESCRIBED)
    k = _open(_head(k, index, heads, k_batch, k_head), J, k_row, E, KEYS, WIDTH, DESCRIBED)
    v = _open(_head(v, index, heads, v_batch, v_head), J, v_row, E, KEYS, WIDTH, DESCRIBED)
    lse2 = _open_row(lse2 + index.to(tl.int64) * padded, padded, QUERIES, DESCRIBED)
    delta = _open_row(delta + index.to(tl.int64) * padded, padded, QUERIES, DESCRIBED)
    k_JE = _read(k, start_j, J, k_row, E, KEYS, WIDTH, True, DESCRIBED)
    v_JE = _read(v, start_j, J, v_row, E, KEYS, WIDTH, True, DESCRIBED)
    d_k_JE = tl.zeros([KEYS, WIDTH], tl.float32)
    d_v_JE = tl.zeros([KEYS, WIDTH], tl.float32)
    whole = Q // QUERIES * QUERIES
    for start in range(0, whole, QUERIES):
        d_k_JE, d_v_JE = _gather(
            k_JE, v_JE, q, d_out, lse2, delta, d_k_JE, d_v_JE, start, Q, q_row, d_out_row, exponent,
            E, QUERIES, WIDTH, False, DESCRIBED,
        )  # fmt: skip
    if whole < Q:
        d_k_JE, d_v_JE = _gather(
            k_JE, v_JE, q, d_out, lse2, delta, d_k_JE, d_v_JE, whole, Q, q_row, d_out_row, exponent,
            E, QUERIES, WIDTH, True, DESCRIBED,
        )  # fmt: skip
    d_k = _head(d_k, index, heads, d_k_batch, d_k_head)
    d_v = _head(d_v, index, heads, d_k_batch, d_k_head)
    _write(d_k, d_k_JE * scale, start_j, J, d_k_row, E, KEYS, WIDTH)
    _write(d_v, d_v_JE, start_j, J, d_k_row, E, KEYS, WIDTH)


@triton.jit
def _descend(
    q_QE, d_out_QE, lse2_Q, delta_Q, k, v, d_q_QE, start, J, k_row, v_row, exponent,
    E: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, PARTIAL: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """One block of keys. PARTIAL: the keys end inside it; p of a zero row could overflow and has to go."""
    k_JE = _read(k, start, J, k_row, E, KEYS, WIDTH, PARTIAL, DESCRIBED)
    s_QJ = tl.dot(q_QE, k_JE.T, input_precision="ieee")
    v_JE = _read(v, start, J, v_row, E, KEYS, WIDTH, PARTIAL, DESCRIBED)
    d_p_QJ = tl.dot(d_out_QE, v_JE.T, input_precision="ieee")
    p_QJ = tl.exp2(s_QJ * exponent - lse2_Q[:, None])
    if PARTIAL:
        p_QJ = tl.where((start + tl.arange(0, KEYS) < J)[None, :], p_QJ, 0.0)
    d_s_QJ = p_QJ * (d_p_QJ - delta_Q[:, None])
    return tl.dot(d_s_QJ.to(k_JE.dtype), k_JE, d_q_QE, input_precision="ieee")


@triton.jit
def _queries_kernel(
    q, k, v, d_out, lse2, delta, d_q, scale, exponent, Q, padded, J, heads,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, d_out_batch, d_out_head, d_out_row,
    d_q_batch, d_q_head, d_q_row,
    E: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    DESCRIBED: tl.constexpr,
):  # fmt: skip
    """d_q of QUERIES queries of one head."""
    blocks = tl.cdiv(Q, QUERIES)
    start_q = tl.program_id(0) % blocks * QUERIES
    index = tl.program_id(0) // blocks
    q = _open(_head(q, index, heads, q_batch, q_head), Q, q_row, E, QUERIES, WIDTH, DESCRIBED)
    d_out = _open(_head(d_out, index, heads, d_out_batch, d_out_head), Q, d_out_row, E, QUERIES, WIDTH, DESCRIBED)
    k = _open(_head(k, index, heads, k_batch, k_head), J, k_row, E, KEYS, WIDTH, DESCRIBED)
    v = _open(_head(v, index, heads, v_batch, v_head), J, v_row, E, KEYS, WIDTH, DESCRIBED)
    q_QE = _read(q, start_q, Q, q_row, E, QUERIES, WIDTH, True, DESCRIBED)
    d_out_QE = _read(d_out, start_q, Q, d_out_row, E, QUERIES, WIDTH, True, DESCRIBED)
    rows = index.to(tl.int64) * padded + start_q + tl.arange(0, QUERIES)
    lse2_Q = tl.load(lse2 + rows)
    delta_Q = tl.load(delta + rows)
    d_q_QE = tl.zeros([QUERIES, WIDTH], tl.float32)
    whole = J // KEYS * KEYS
    for start in range(0, whole, KEYS):
        d_q_QE = _descend(
            q_QE, d_out_QE, lse2_Q, delta_Q, k, v, d_q_QE, start, J, k_row, v_row, exponent,
            E, KEYS, WIDTH, False, DESCRIBED,
        )  # fmt: skip
    if whole < J:
        d_q_QE = _descend(
            q_QE, d_out_QE, lse2_Q, delta_Q, k, v, d_q_QE, whole, J, k_row, v_row, exponent,
            E, KEYS, WIDTH, True, DESCRIBED,
        )  # fmt: skip
    _write(_head(d_q, index, heads, d_q_batch, d_q_head), d_q_QE * scale, start_q, Q, d_q_row, E, QUERIES, WIDTH)


# ---- host -----------------------------------------------------------------------------------------------------------

_AMPERE = {
    64: Tilings(
        forward=Tiling(own=128, other=64, warps=8, stages=3),
        keys=Tiling(own=128, other=32, warps=8, stages=2),
        queries=Tiling(own=128, other=32, warps=8, stages=2),
    ),
    128: Tilings(
        forward=Tiling(own=128, other=64, warps=8, stages=3),
        keys=Tiling(own=128, other=16, warps=8, stages=2),
        queries=Tiling(own=128, other=16, warps=8, stages=2),
    ),
}
_HOPPER = {
    64: Tilings(
        forward=Tiling(own=64, other=128, warps=4, stages=2, described=True),
        keys=Tiling(own=64, other=64, warps=4, stages=3, described=True),
        queries=Tiling(own=128, other=64, warps=4, stages=3),
    ),
    128: Tilings(
        forward=Tiling(own=128, other=128, warps=8, stages=2, described=True),
        keys=Tiling(own=64, other=64, warps=8, stages=2, described=True),
        queries=Tiling(own=128, other=64, warps=8, stages=2, described=True),
    ),
}
_EXACT = {
    64: Tilings(
        forward=Tiling(own=32, other=32, warps=8, stages=1),
        keys=Tiling(own=32, other=32, warps=8, stages=1),
        queries=Tiling(own=32, other=32, warps=8, stages=1),
    ),
    128: Tilings(
        forward=Tiling(own=16, other=16, warps=8, stages=1),
        keys=Tiling(own=16, other=16, warps=8, stages=1),
        queries=Tiling(own=16, other=16, warps=8, stages=1),
    ),
}
"""float32, for comparison and not for speed: no matrix instruction is that exact, so the products run on the ordinary
units, for which Triton keeps whole rows in registers and spills."""
_GENERATIONS = {8: _AMPERE, 9: _HOPPER, 10: _HOPPER}
"""By the major compute capability; others take Ampere's, whose shared memory (under 100 KiB) every one has."""


def tilings(dtype: torch.dtype, width: int, major: int) -> Tilings:
    """What was measured to be fastest, or for what could not be measured, what compiles without spilling."""
    table = _EXACT if dtype == torch.float32 else _GENERATIONS.get(major, _AMPERE)
    return table[min(size for size in table if size >= width)]


def forward(q_BHQE, k_BHJE, v_BHJE, scale, out_BHQE, lse_BHQ) -> None:
    check("gpu_triton", q_BHQE, scale)
    tiling = tilings(q_BHQE.dtype, q_BHQE.shape[-1], _major(q_BHQE)).forward
    q_BHQE, k_BHJE, v_BHJE = map(rows_together, (q_BHQE, k_BHJE, v_BHJE))
    _run(q_BHQE, forward_launch(q_BHQE, k_BHJE, v_BHJE, scale, out_BHQE, lse_BHQ, tiling))


def backward(
    d_out_BHQE, d_lse_BHQ, q_BHQE, k_BHJE, v_BHJE, out_BHQE, lse_BHQ, scale, d_q_BHQE, d_k_BHJE, d_v_BHJE
) -> None:
    chosen = tilings(q_BHQE.dtype, q_BHQE.shape[-1], _major(q_BHQE))
    d_out_BHQE, q_BHQE, k_BHJE, v_BHJE, out_BHQE = map(rows_together, (d_out_BHQE, q_BHQE, k_BHJE, v_BHJE, out_BHQE))
    lse2, delta = constants = _constants_of(q_BHQE)
    d_lse_BHQ = None if d_lse_BHQ is None else d_lse_BHQ.contiguous()
    inputs = (q_BHQE, k_BHJE, v_BHJE, d_out_BHQE, lse2, delta)
    _run(
        q_BHQE,
        constants_launch(out_BHQE, d_out_BHQE, lse_BHQ.contiguous(), d_lse_BHQ, *constants),
        keys_launch(*inputs, scale, d_k_BHJE, d_v_BHJE, chosen.keys),
        queries_launch(*inputs, scale, d_q_BHQE, chosen.queries),
    )


def forward_launch(q_BHQE, k_BHJE, v_BHJE, scale, out_BHQE, lse_BHQ, tiling: Tiling) -> Launch:
    batch, heads, queries, _ = q_BHQE.shape
    arguments = {
        "q": q_BHQE, "k": k_BHJE, "v": v_BHJE, "out": out_BHQE, "lse": lse_BHQ, "exponent": scale * _LOG2_E.value,
        "Q": queries, "J": k_BHJE.shape[2], "heads": heads,
        **_strides(q=q_BHQE, k=k_BHJE, v=v_BHJE, out=out_BHQE),
        **_tile("QUERIES", "KEYS", tiling, q_BHQE, k_BHJE, v_BHJE),
    }  # fmt: skip
    return _launch(_forward_kernel, batch * heads * triton.cdiv(queries, tiling.own), arguments, tiling)


def constants_launch(out_BHQE, d_out_BHQE, lse_BHQ, d_lse_BHQ, lse2, delta) -> Launch:
    batch, heads, queries, width = out_BHQE.shape
    arguments = {
        "out": out_BHQE, "d_out": d_out_BHQE, "lse": lse_BHQ, "d_lse": d_lse_BHQ, "lse2": lse2, "delta": delta,
        "Q": queries, "padded": lse2.shape[-1], "heads": heads, **_strides(out=out_BHQE, d_out=d_out_BHQE),
        "E": width, "WIDTH": _padded_width(width), "QUERIES": _CONSTANTS_BLOCK,
    }  # fmt: skip
    grid = batch * heads * (lse2.shape[-1] // _CONSTANTS_BLOCK)
    return Launch(kernel=_constants_kernel, grid=(grid,), arguments=arguments, num_warps=4, num_stages=1)


def keys_launch(q_BHQE, k_BHJE, v_BHJE, d_out_BHQE, lse2, delta, scale, d_k_BHJE, d_v_BHJE, tiling: Tiling) -> Launch:
    batch, heads, queries, _ = q_BHQE.shape
    assert d_k_BHJE.stride() == d_v_BHJE.stride(), "operator.py allocates the two alike"
    arguments = {
        "q": q_BHQE, "k": k_BHJE, "v": v_BHJE, "d_out": d_out_BHQE, "lse2": lse2, "delta": delta,
        "d_k": d_k_BHJE, "d_v": d_v_BHJE, "scale": scale, "exponent": scale * _LOG2_E.value,
        "Q": queries, "padded": lse2.shape[-1], "J": k_BHJE.shape[2], "heads": heads,
        **_strides(q=q_BHQE, k=k_BHJE, v=v_BHJE, d_out=d_out_BHQE, d_k=d_k_BHJE),
        **_tile("KEYS", "QUERIES", tiling, q_BHQE, k_BHJE, v_BHJE, d_out_BHQE),
    }  # fmt: skip
    return _launch(_keys_kernel, batch * heads * triton.cdiv(k_BHJE.shape[2], tiling.own), arguments, tiling)


def queries_launch(q_BHQE, k_BHJE, v_BHJE, d_out_BHQE, lse2, delta, scale, d_q_BHQE, tiling: Tiling) -> Launch:
    batch, heads, queries, _ = q_BHQE.shape
    arguments = {
        "q": q_BHQE, "k": k_BHJE, "v": v_BHJE, "d_out": d_out_BHQE, "lse2": lse2, "delta": delta,
        "d_q": d_q_BHQE, "scale": scale, "exponent": scale * _LOG2_E.value,
        "Q": queries, "padded": lse2.shape[-1], "J": k_BHJE.shape[2], "heads": heads,
        **_strides(q=q_BHQE, k=k_BHJE, v=v_BHJE, d_out=d_out_BHQE, d_q=d_q_BHQE),
        **_tile("QUERIES", "KEYS", tiling, q_BHQE, k_BHJE, v_BHJE, d_out_BHQE),
    }  # fmt: skip
    return _launch(_queries_kernel, batch * heads * triton.cdiv(queries, tiling.own), arguments, tiling)


def _launch(kernel, programs: int, arguments: dict, tiling: Tiling) -> Launch:
    return Launch(
        kernel=kernel, grid=(programs,), arguments=arguments, num_warps=tiling.warps, num_stages=tiling.stages
    )


def _strides(**tensors: Tensor) -> dict[str, int]:
    names = ("batch", "head", "row")
    return {
        f"{name}_{axis}": stride
        for name, tensor in tensors.items()
        for axis, stride in zip(names, tensor.stride(), strict=False)
    }


def _tile(own: str, other: str, tiling: Tiling, *tensors: Tensor) -> dict:
    width = tensors[0].shape[-1]
    return {
        "E": width, "WIDTH": _padded_width(width), own: tiling.own, other: tiling.other,
        "DESCRIBED": tiling.described and all(map(_is_describable, tensors)),
    }  # fmt: skip


def _padded_width(width: int) -> int:
    return max(16, triton.next_power_of_2(width))  # the smallest matrix product takes 16


def _is_describable(tensor_BHSE: Tensor) -> bool:
    """Whether the copy engine takes it: 16-byte address and strides, rows apart from each other."""
    size = tensor_BHSE.element_size()
    return (
        tensor_BHSE.data_ptr() % 16 == 0
        and tensor_BHSE.stride(2) > 0
        and all(stride * size % 16 == 0 for stride in tensor_BHSE.stride()[:3])
    )


def _constants_of(q_BHQE: Tensor) -> Tensor:
    batch, heads, queries, _ = q_BHQE.shape
    padded = triton.cdiv(queries, _PADDING) * _PADDING
    return q_BHQE.new_empty(2, batch * heads, padded, dtype=torch.float32)


def _major(tensor: Tensor) -> int:
    """Of the compute capability; interpreted on a CPU the kernels run as on Hopper, descriptors included."""
    return torch.cuda.get_device_capability(tensor.device)[0] if tensor.is_cuda else 9


def _run(beside: Tensor, *launches: Launch) -> None:
    """On the tensors' device; descriptors are written to memory that Triton asks us for."""
    triton.set_allocator(lambda size, _alignment, _stream: beside.new_empty(size, dtype=torch.int8))
    with torch.cuda.device_of(beside):
        for launch in launches:
            launch.run()


# ---- ahead of time -------------------------------------------------------------------------------------------------

_PROMISES = {"sm_80": ("HMMA",), "sm_90": ("HGMMA", "UTMALDG"), "sm_100": ("UTCHMMA", "UTMALDG")}
_COMPILED_FOR = {8: ("sm_80", "gfx942"), 9: ("sm_90",), 10: ("sm_100",)}
_TOKENS = 41805


def _compiled(major: int, dtype: torch.dtype, width: int) -> Iterator[Compilation]:
    """The kernels of one generation for the model's longest clip, 38 heads of this width."""
    tokens_BHSE = on_meta(dtype, _TOKENS, 1, 38, width).permute(1, 2, 0, 3)
    lse_BHQ = on_meta(torch.float32, 1, 38, _TOKENS)
    constants = _constants_of(tokens_BHSE)
    inputs = (tokens_BHSE,) * 3
    chosen = tilings(dtype, width, major)
    launches = (
        forward_launch(*inputs, 0.125, tokens_BHSE, lse_BHQ, chosen.forward),
        keys_launch(*inputs, tokens_BHSE, *constants, 0.125, tokens_BHSE, tokens_BHSE, chosen.keys),
        queries_launch(*inputs, tokens_BHSE, *constants, 0.125, tokens_BHSE, chosen.queries),
    )
    for launch in launches:
        described = "descriptors" if launch.arguments["DESCRIBED"] else "pointers"
        promises = {
            target: tuple(each for each in instructions if launch.arguments["DESCRIBED"] or each != "UTMALDG")
            for target, instructions in _PROMISES.items()
        }
        label = f"E {width}, {dtype}, {described}"
        yield launch.compilation(label, promises, _COMPILED_FOR[major])
    if major == min(_COMPILED_FOR):
        for d_lse_BHQ in (None, lse_BHQ):
            launch = constants_launch(tokens_BHSE, tokens_BHSE, lse_BHQ, d_lse_BHQ, *constants)
            yield launch.compilation(f"E {width}, {dtype}" + ("" if d_lse_BHQ is None else ", d_lse"))


COMPILED: tuple[Compilation, ...] = tuple(
    each
    for dtype, width in ((torch.bfloat16, 64), (torch.float16, 64), (torch.bfloat16, 128), (torch.bfloat16, 14))
    for major in _COMPILED_FOR
    if hasattr(_forward_kernel, "params")  # interpreted functions have none, and nothing to compile
    for each in _compiled(major, dtype, width)
)

joint_attention = operator("gpu_triton", forward, backward)
