"""Joint attention in plain torch: the formulas of the contract, in blocks of queries so that memory stays bounded."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..precision import working_dtype
from .rotation import check_rotation, rotate_before

_SCORES = 2**27
"""Scores held at once (512 MiB of fp32): a query's row is always whole, so blocks change no formula."""


def joint_attention(
    q_BHQE: Tensor,
    k_BHJE: Tensor,
    v_BHJE: Tensor,
    *,
    scale: float,
    rotation: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    if rotation is not None:
        check_rotation(q_BHQE, k_BHJE, rotation)
        q_BHQE, k_BHJE = rotate_before(q_BHQE, k_BHJE, rotation)
    return _JointAttention.apply(q_BHQE, k_BHJE, v_BHJE, scale)


class _JointAttention(torch.autograd.Function):
    """Written out rather than left to autograd, which would keep the scores of every layer."""

    @staticmethod
    def forward(ctx, q_BHQE, k_BHJE, v_BHJE, scale):
        assert q_BHQE.dtype == k_BHJE.dtype == v_BHJE.dtype, "queries, keys and values have one dtype"
        working = working_dtype(q_BHQE.dtype)
        k, v = k_BHJE.to(working), v_BHJE.to(working)
        outs, lses = [], []
        for rows in _query_blocks(q_BHQE, k):
            scores = (q_BHQE[:, :, rows].to(working) * scale) @ k.transpose(-1, -2)
            highest = scores.amax(-1, keepdim=True)
            weights = scores.sub_(highest).exp_()
            total = weights.sum(-1, keepdim=True)
            outs.append((weights @ v).div_(total).to(q_BHQE.dtype))
            lses.append((highest + total.log()).squeeze(-1))
        out_BHQE, lse_BHQ = _join(outs), _join(lses)
        ctx.save_for_backward(q_BHQE, k_BHJE, v_BHJE, out_BHQE, lse_BHQ)
        ctx.scale = scale
        ctx.set_materialize_grads(False)
        return out_BHQE, lse_BHQ

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out, d_lse):
        d_out = torch.zeros_like(ctx.saved_tensors[3]) if d_out is None else d_out
        return *_backward(d_out, d_lse, *ctx.saved_tensors, scale=ctx.scale), None


def _backward(
    d_out_BHQE: Tensor,
    d_lse_BHQ: Tensor | None,
    q_BHQE: Tensor,
    k_BHJE: Tensor,
    v_BHJE: Tensor,
    out_BHQE: Tensor,
    lse_BHQ: Tensor,
    *,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    working = working_dtype(q_BHQE.dtype)
    k, v, d_out = (tensor.to(working) for tensor in (k_BHJE, v_BHJE, d_out_BHQE))
    delta = (out_BHQE.to(working) * d_out).sum(-1)
    if d_lse_BHQ is not None:
        delta = delta - d_lse_BHQ
    d_qs, d_k, d_v = [], 0, 0
    for rows in _query_blocks(q_BHQE, k):
        scaled_q, d_rows = q_BHQE[:, :, rows].to(working) * scale, d_out[:, :, rows]
        weights = (scaled_q @ k.transpose(-1, -2)).sub_(lse_BHQ[:, :, rows, None]).exp_()
        d_v = weights.transpose(-1, -2) @ d_rows + d_v
        d_scores = (d_rows @ v.transpose(-1, -2)).sub_(delta[:, :, rows, None]).mul_(weights)
        d_k = d_scores.transpose(-1, -2) @ scaled_q + d_k
        d_qs.append((d_scores @ k).mul_(scale).to(q_BHQE.dtype))
    return _join(d_qs), d_k.to(k_BHJE.dtype), d_v.to(v_BHJE.dtype)


joint_attention.backward = _backward


def _query_blocks(q_BHQE: Tensor, k_BHJE: Tensor) -> Iterator[slice]:
    batch, heads, queries, _ = q_BHQE.shape
    rows = max(1, _SCORES // (batch * heads * k_BHJE.shape[2]))
    return (slice(start, start + rows) for start in range(0, queries, rows))


def _join(blocks: list[Tensor]) -> Tensor:
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)
