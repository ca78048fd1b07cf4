"""Joint attention over tokens that lie on several ranks: Ulysses, ring, and both.

Each context rank holds some tokens of every head. Ulysses (DeepSpeed-Ulysses, arXiv 2309.14509) exchanges tokens for
heads, so that a rank attends over all tokens of its group with some of the heads; a ring (Ring Attention, arXiv
2310.01889) passes keys and values on and joins what each block gives by its log-sum-exp. Hybrid: Ulysses inside a group
of consecutive ranks, a ring over the groups (USP, arXiv 2405.07719). Heads and tokens need not divide: pieces have the
lengths they have, and there is no mask.
"""

from dataclasses import dataclass

import torch
import torch.distributed as distributed
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..kernels.joint_attention import JointAttention
from .config import divide
from .mesh import Mesh


@dataclass(frozen=True)
class ContextAttention:
    """`joint_attention` for tokens spread over the context ranks of a mesh."""

    mesh: Mesh
    kernel: JointAttention

    def __call__(
        self,
        q_QBHE: Tensor,
        k_JBHE: Tensor,
        v_JBHE: Tensor,
        *,
        queries: tuple[int, ...],
        keys: tuple[int, ...],
        scale: float,
    ) -> Tensor:
        """Attention of this rank's queries to every context rank's tokens, [Q, B, H E].

        `queries` and `keys` are the numbers of tokens on every context rank; the tensors hold this rank's, with all the
        heads its tensor rank has.
        """
        ulysses, ring = self.mesh.ulysses, self.mesh.ring
        group = ring.rank() * ulysses.size()
        here = slice(group, group + ulysses.size())
        heads = divide(q_QBHE.shape[2], ulysses.size())
        if ulysses.size() > 1:
            q_QBHE = _Exchange.apply(q_QBHE, queries[here], heads, ulysses)
            kv = _Exchange.apply(torch.cat([k_JBHE, v_JBHE], dim=-1), keys[here], heads, ulysses)
            k_JBHE, v_JBHE = kv.chunk(2, dim=-1)
        q_BHQE, k_BHJE, v_BHJE = (tensor.permute(1, 2, 0, 3) for tensor in (q_QBHE, k_JBHE, v_JBHE))
        if ring.size() > 1:
            blocks = [sum(keys[first : first + ulysses.size()]) for first in range(0, len(keys), ulysses.size())]
            out_BHQE = _Ring.apply(q_BHQE, k_BHJE, v_BHJE, blocks, ring, self.kernel, scale)
        else:
            out_BHQE, _ = self.kernel(q_BHQE, k_BHJE, v_BHJE, scale=scale)
        out_QBHE = out_BHQE.permute(2, 0, 1, 3)
        if ulysses.size() > 1:
            out_QBHE = _ExchangeBack.apply(out_QBHE, queries[here], heads, ulysses)
        return out_QBHE.flatten(-2)


class _Exchange(torch.autograd.Function):
    """This rank's tokens of all heads -> all tokens of this rank's heads; backward: the other way."""

    @staticmethod
    def forward(ctx, x_SBHE, tokens, heads, group):
        ctx.way = tokens, heads, group
        return _tokens_to_heads(x_SBHE, *ctx.way)

    @staticmethod
    def backward(ctx, gradient):
        return _heads_to_tokens(gradient, *ctx.way), None, None, None


class _ExchangeBack(torch.autograd.Function):
    """All tokens of this rank's heads -> this rank's tokens of all heads; backward: the other way."""

    @staticmethod
    def forward(ctx, x_SBHE, tokens, heads, group):
        ctx.way = tokens, heads, group
        return _heads_to_tokens(x_SBHE, *ctx.way)

    @staticmethod
    def backward(ctx, gradient):
        return _tokens_to_heads(gradient, *ctx.way), None, None, None


def _tokens_to_heads(x_SBHE: Tensor, tokens, heads, group) -> Tensor:
    _, batch, _, width = x_SBHE.shape
    mine = heads[group.rank()]
    pieces = [piece.flatten() for piece in x_SBHE.split(heads, dim=2)]
    received = _all_to_all(pieces, [count * batch * mine * width for count in tokens], group)
    return torch.cat([piece.view(-1, batch, mine, width) for piece in received])


def _heads_to_tokens(x_SBHE: Tensor, tokens, heads, group) -> Tensor:
    _, batch, _, width = x_SBHE.shape
    mine = tokens[group.rank()]
    pieces = [piece.flatten() for piece in x_SBHE.split(tokens)]
    received = _all_to_all(pieces, [mine * batch * count * width for count in heads], group)
    return torch.cat(
        [piece.view(mine, batch, count, width) for piece, count in zip(received, heads, strict=True)], dim=2
    )


def _all_to_all(pieces: list[Tensor], sizes: list[int], group) -> list[Tensor]:
    """Piece i goes to rank i of the group; what comes from rank i has sizes[i] values."""
    received = pieces[0].new_empty(sum(sizes))
    distributed.all_to_all_single(received, torch.cat(pieces), sizes, [piece.numel() for piece in pieces], group=group)
    return list(received.split(sizes))


class _Ring(torch.autograd.Function):
    """Attention to the keys and values of every rank of a ring, whose blocks may differ in length.

    With out_i, lse_i of block i and lse = logsumexp_i(lse_i): out = sum_i exp(lse_i - lse) out_i. Backward takes the
    row's whole out and lse and one block at a time: its weights follow from them, and its gradients are a part of the
    sums over all keys. Blocks go round a second time for that, their gradients, in fp32, with them.
    """

    @staticmethod
    def forward(ctx, q_BHQE, k_BHJE, v_BHJE, blocks, group, kernel, scale):
        out, lse = None, None
        for block_BHJE in _travelling(torch.stack([k_BHJE, v_BHJE]), blocks, group):
            if _is_nothing(q_BHQE, block_BHJE):
                continue
            part, part_lse = kernel(q_BHQE, *block_BHJE.unbind(), scale=scale)
            if out is None:
                out, lse = part.float(), part_lse
                continue
            joined = torch.logaddexp(lse, part_lse)
            out = out * (lse - joined).exp()[..., None] + part * (part_lse - joined).exp()[..., None]
            lse = joined
        if out is None:
            out, lse = q_BHQE.float(), q_BHQE.new_empty(q_BHQE.shape[:3])  # nobody asks: as empty as the queries
        out = out.to(q_BHQE.dtype)
        ctx.save_for_backward(q_BHQE, k_BHJE, v_BHJE, out, lse)
        ctx.rest = blocks, group, kernel, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out):
        q_BHQE, k_BHJE, v_BHJE, out, lse = ctx.saved_tensors
        blocks, group, kernel, scale = ctx.rest
        d_q, d_kv, wait_for_previous = 0, None, None
        rank, size = group.rank(), group.size()
        for hop, block_BHJE in enumerate(_travelling(torch.stack([k_BHJE, v_BHJE]), blocks, group)):
            d_block = _block_backward(kernel, d_out, q_BHQE, block_BHJE, out, lse, scale)
            d_q = d_q + d_block[0].float()
            mine = torch.stack(d_block[1:]).float()
            if d_kv is not None:
                wait_for_previous()
                mine += d_kv
            # The block's gradient goes on as the block does, one hop behind, and once more: home.
            d_kv = mine.new_empty(*mine.shape[:3], blocks[(rank - hop - 1) % size], mine.shape[4])
            wait_for_previous = _pass_on(mine, d_kv, group)
        wait_for_previous()
        d_k, d_v = d_kv.to(k_BHJE.dtype).unbind()
        return d_q.to(q_BHQE.dtype), d_k, d_v, None, None, None, None


def _block_backward(kernel: JointAttention, d_out, q_BHQE, kv_2BHJE, out, lse, scale: float) -> tuple[Tensor, ...]:
    """Gradients of queries, keys and values through one block."""
    if _is_nothing(q_BHQE, kv_2BHJE):
        return tuple(torch.zeros_like(tensor) for tensor in (q_BHQE, *kv_2BHJE.unbind()))
    return kernel.backward(d_out, None, q_BHQE, *kv_2BHJE.unbind(), out, lse, scale=scale)


def _is_nothing(q_BHQE: Tensor, block_J: Tensor) -> bool:
    """No queries or no keys: kernels take both from 1. A short clip leaves some context ranks without tokens."""
    return q_BHQE.shape[-2] == 0 or block_J.shape[-2] == 0


def _travelling(kv_2BHJE: Tensor, blocks: list[int], group):
    """This rank's block, then that of the rank before it, and so on; the next is on its way while one is used."""
    rank, size = group.rank(), group.size()
    for hop in range(size):
        if hop < size - 1:
            shape = (*kv_2BHJE.shape[:3], blocks[(rank - hop - 1) % size], kv_2BHJE.shape[4])
            following = kv_2BHJE.new_empty(shape)
            wait = _pass_on(kv_2BHJE.contiguous(), following, group)
        yield kv_2BHJE
        if hop < size - 1:
            wait()
            kv_2BHJE = following


def _pass_on(sent: Tensor, received: Tensor, group):
    """Starts sending to the next rank of the ring and receiving from the one before; returns what waits for both."""
    rank, size = group.rank(), group.size()
    following, previous = (distributed.get_global_rank(group, (rank + step) % size) for step in (1, -1))
    works = distributed.batch_isend_irecv(
        [
            distributed.P2POp(distributed.isend, sent, following, group),
            distributed.P2POp(distributed.irecv, received, previous, group),
        ]
    )

    def wait() -> None:
        for work in works:
            work.wait()
        # `sent` lives as long as this closure: until here.
        _ = sent

    return wait
