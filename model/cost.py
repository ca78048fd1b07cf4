"""What a model costs, by its shapes: parameters, in the published layout. Imports no torch.

The names are those of the published transformer (diffusers' SD3Transformer2DModel); model/published.py reads and
writes files by this table, so a count and a file can not disagree.
"""

from math import prod

from .config import PATCH, ModelConfig

TIMESTEP_FEATURES = 256
"""Sinusoidal features of the timestep before its MLP."""


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter of the published layout, name -> shape, in the order of the forward pass."""
    width = config.width
    shapes: dict[str, tuple[int, ...]] = {"pos_embed.proj.weight": (width, config.channels, PATCH, PATCH)}
    shapes["pos_embed.proj.bias"] = (width,)
    shapes |= _linear("time_text_embed.timestep_embedder.linear_1", TIMESTEP_FEATURES, width)
    shapes |= _linear("time_text_embed.timestep_embedder.linear_2", width, width)
    shapes |= _linear("time_text_embed.text_embedder.linear_1", config.pooled_width, width)
    shapes |= _linear("time_text_embed.text_embedder.linear_2", width, width)
    shapes |= _linear("context_embedder", config.text_width, width)
    for layer in range(config.layers):
        shapes |= _block(f"transformer_blocks.{layer}", config, last=layer == config.layers - 1)
    shapes |= _linear("norm_out.linear", width, 2 * width)
    shapes |= _linear("proj_out", width, config.token_width)
    return shapes


def count_parameters(config: ModelConfig) -> int:
    """Parameters of the whole model, the last block's never-read text query included, as published."""
    return sum(prod(shape) for shape in parameter_shapes(config).values())


def _block(prefix: str, config: ModelConfig, *, last: bool) -> dict[str, tuple[int, ...]]:
    width = config.width
    shapes = _linear(f"{prefix}.norm1.linear", width, 6 * width)
    shapes |= _linear(f"{prefix}.norm1_context.linear", width, (2 if last else 6) * width)
    for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"):
        shapes |= _linear(f"{prefix}.attn.{name}", width, width)
    for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
        shapes[f"{prefix}.attn.{name}.weight"] = (config.head_width,)
    shapes |= _linear(f"{prefix}.attn.to_out.0", width, width)
    shapes |= _linear(f"{prefix}.ff.net.0.proj", width, config.mlp_width)
    shapes |= _linear(f"{prefix}.ff.net.2", config.mlp_width, width)
    if not last:
        shapes |= _linear(f"{prefix}.attn.to_add_out", width, width)
        shapes |= _linear(f"{prefix}.ff_context.net.0.proj", width, config.mlp_width)
        shapes |= _linear(f"{prefix}.ff_context.net.2", config.mlp_width, width)
    return shapes


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
