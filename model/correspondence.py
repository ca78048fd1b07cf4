"""Which parameters of the published layout make which parameter in memory, and how.

Two things differ. Queries, keys and values are one matrix in memory, its rows ordered (head, q|k|v, E), so that a
rank's heads are one piece; and within a head the published pairs (2i, 2i + 1) stand as (i, i + E/2), which lets RoPE
rotate halves. Both ways work on the whole parameter and on a tensor-parallel rank's piece of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .config import PATCH, ModelConfig

Tensors = Sequence[torch.Tensor]


@dataclass(frozen=True)
class Correspondence:
    """One parameter in memory and the published parameters it is made of."""

    parameter: str
    published: tuple[str, ...]
    join: Callable[[Tensors], torch.Tensor]
    """Published tensors -> the parameter in memory."""
    split: Callable[[torch.Tensor], Tensors]
    """The parameter in memory -> published tensors."""


def correspondences(config: ModelConfig) -> list[Correspondence]:
    """One for every parameter of an MMDiT of this configuration, in the order of the forward pass."""
    table = [_patch_weight(config), _same("patches.bias", "pos_embed.proj.bias")]
    table += _linear("condition.time.first", "time_text_embed.timestep_embedder.linear_1")
    table += _linear("condition.time.second", "time_text_embed.timestep_embedder.linear_2")
    table += _linear("condition.caption.first", "time_text_embed.text_embedder.linear_1")
    table += _linear("condition.caption.second", "time_text_embed.text_embedder.linear_2")
    table += _linear("caption", "context_embedder")
    for layer in range(config.layers):
        table += _block(config, layer)
    table += _linear("modulation.linear", "norm_out.linear")
    table += _linear("velocities", "proj_out")
    return table


def _block(config: ModelConfig, layer: int) -> list[Correspondence]:
    here, there = f"blocks.{layer}", f"transformer_blocks.{layer}"
    names = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")
    table = _linear(f"{here}.video.modulation.linear", f"{there}.norm1.linear")
    table += _linear(f"{here}.text.modulation.linear", f"{there}.norm1_context.linear")
    for stream, projections, added in zip(("video", "text"), names, ("", "added_"), strict=True):
        for kind in ("weight", "bias"):
            published = tuple(f"{there}.attn.{name}.{kind}" for name in projections)
            table.append(_qkv(config, f"{here}.{stream}.qkv.{kind}", published))
        for role in ("q", "k"):
            gain = f"{there}.attn.norm_{added}{role}.weight"
            table.append(_gain(f"{here}.{stream}.{role}_gain.weight", gain))
    table += _linear(f"{here}.video.out", f"{there}.attn.to_out.0")
    table += _linear(f"{here}.video.up", f"{there}.ff.net.0.proj")
    table += _linear(f"{here}.video.down", f"{there}.ff.net.2")
    if layer < config.layers - 1:
        table += _linear(f"{here}.text.out", f"{there}.attn.to_add_out")
        table += _linear(f"{here}.text.up", f"{there}.ff_context.net.0.proj")
        table += _linear(f"{here}.text.down", f"{there}.ff_context.net.2")
    return table


def _same(parameter: str, published: str) -> Correspondence:
    return Correspondence(parameter, (published,), lambda tensors: tensors[0], lambda tensor: [tensor])


def _linear(parameter: str, published: str) -> list[Correspondence]:
    return [_same(f"{parameter}.{kind}", f"{published}.{kind}") for kind in ("weight", "bias")]


def _patch_weight(config: ModelConfig) -> Correspondence:
    """The published convolution [D, C, 2, 2] reads a patch as (channel, row, column); tokens (row, column, channel)."""
    inside = (config.width, PATCH, PATCH, config.channels)
    return Correspondence(
        "patches.weight",
        ("pos_embed.proj.weight",),
        join=lambda tensors: tensors[0].permute(0, 2, 3, 1).flatten(1),
        split=lambda tensor: [tensor.reshape(inside).permute(0, 3, 1, 2)],
    )


def _gain(parameter: str, published: str) -> Correspondence:
    return Correspondence(
        parameter,
        (published,),
        join=lambda tensors: pairs_to_halves(tensors[0]),
        split=lambda tensor: [halves_to_pairs(tensor)],
    )


def _qkv(config: ModelConfig, parameter: str, published: tuple[str, ...]) -> Correspondence:
    def join(tensors: Tensors) -> torch.Tensor:
        q, k, v = (_per_head(tensor, config.head_width) for tensor in tensors)
        return torch.stack([pairs_to_halves(q, dim=1), pairs_to_halves(k, dim=1), v], dim=1).flatten(0, 2)

    def split(tensor: torch.Tensor) -> Tensors:
        q, k, v = tensor.unflatten(0, (-1, 3, config.head_width)).unbind(1)
        return [part.flatten(0, 1) for part in (halves_to_pairs(q, dim=1), halves_to_pairs(k, dim=1), v)]

    return Correspondence(parameter, published, join, split)


def _per_head(tensor: torch.Tensor, head_width: int) -> torch.Tensor:
    # The number of heads is written out: a rank may have none.
    return tensor.unflatten(0, (tensor.shape[0] // head_width, head_width))


def pairs_to_halves(tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """(0, 1, 2, 3, ...) along `dim` -> (0, 2, ..., 1, 3, ...)."""
    return tensor.unflatten(dim, (tensor.shape[dim] // 2, 2)).transpose(dim, dim + 1).flatten(dim, dim + 1)


def halves_to_pairs(tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """The inverse of `pairs_to_halves`."""
    return tensor.unflatten(dim, (2, tensor.shape[dim] // 2)).transpose(dim, dim + 1).flatten(dim, dim + 1)
