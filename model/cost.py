"""What a model costs, by its shapes: parameters, in the published layout, and floating-point operations of a step.

The names are those of the published transformer (diffusers' SD3Transformer2DModel); model/published.py reads and
writes files by this table, so a count and a file can not disagree. Operations are counted weight by weight from the
same table: what each one multiplies, forward and backward. Imports no torch.
"""

from collections.abc import Container
from dataclasses import dataclass
from math import prod
from typing import Literal

from .config import PATCH, ModelConfig, Recompute

TIMESTEP_FEATURES = 256
"""Sinusoidal features of the timestep before its MLP."""

UNTRAINED_INPUTS = (
    "pos_embed.proj",
    "time_text_embed.timestep_embedder.linear_1",
    "time_text_embed.text_embedder.linear_1",
    "context_embedder",
)
"""Layers that read the batch itself: backward gives their weights a gradient and their input none."""


@dataclass(frozen=True, kw_only=True)
class StepOperations:
    """Floating-point operations of one training step's matrix products; a multiply and its add are two.

    Norms, activations, biases, positions, noise, loss and optimizer are left out: under 1 % at the model's sizes.
    """

    forward: int
    backward: int
    """Of the gradients of weights and activations alone."""
    recomputed: int
    """What backward computes a second time: the attention's scores, which no backend keeps, and under full
    recomputation every block's forward."""

    @property
    def model(self) -> int:
        """What the mathematics asks for, whatever is recomputed: the numerator of MFU (PaLM, arXiv 2204.02311, B)."""
        return self.forward + self.backward

    @property
    def hardware(self) -> int:
        """What the device executes: the numerator of HFU."""
        return self.model + self.recomputed


def count_operations(
    config: ModelConfig,
    *,
    video_tokens: int,
    text_tokens: int,
    batch: int,
    recompute: Recompute = "none",
    recomputing: Container[int] | None = None,
) -> StepOperations:
    """Of forward and backward over `batch` samples of that many tokens, gradients of all parameters included.

    `recomputing`: the blocks that recompute; None: all of them.
    """
    streams = {"video": batch * video_tokens, "text": batch * text_tokens, "sample": batch}
    forward = backward = recomputed = 0
    for name, shape in parameter_shapes(config).items():
        if len(shape) == 1:
            continue  # biases and gains multiply no matrix
        product = 2 * streams[_rows_of(name)] * prod(shape)
        forward += product
        backward += product if name.removesuffix(".weight") in UNTRAINED_INPUTS else 2 * product
        if _is_recomputed(name, recompute, recomputing):
            recomputed += product
    for layer in range(config.layers):
        # The last block's text asks nothing: its query is projected, as published, but attends to nothing.
        queries = video_tokens if layer == config.layers - 1 else video_tokens + text_tokens
        product = 2 * batch * queries * (video_tokens + text_tokens) * config.width
        forward += 2 * product  # scores, and the weighted sum of values
        backward += 4 * product  # of the values, the weights, the queries and the keys
        whole = recompute == "full" and (recomputing is None or layer in recomputing)
        recomputed += 3 * product if whole else product
    return StepOperations(forward=forward, backward=backward, recomputed=recomputed)


def _is_recomputed(name: str, recompute: Recompute, recomputing: Container[int] | None) -> bool:
    """Whether backward computes what this matrix gives once more."""
    prefix, layer, *part = name.split(".")[:3] if name.startswith("transformer_blocks.") else ("", "0", "")
    if not prefix or recompute == "none" or (recomputing is not None and int(layer) not in recomputing):
        return False
    return recompute == "full" or part[0] in ("ff", "ff_context")


def count_block_operations(config: ModelConfig, layer: int, *, video_tokens: int, text_tokens: int) -> int:
    """Of one block's forward over one sample: what stages of a pipeline are balanced by."""
    last = layer == config.layers - 1
    streams = {"video": video_tokens, "text": text_tokens, "sample": 1}
    matrices = _block("", config, last=last).items()
    products = sum(2 * streams[_rows_of(name)] * prod(shape) for name, shape in matrices if len(shape) > 1)
    queries = video_tokens if last else video_tokens + text_tokens
    return products + 4 * queries * (video_tokens + text_tokens) * config.width


def count_end_operations(config: ModelConfig, *, video_tokens: int, text_tokens: int) -> tuple[int, int]:
    """Of one sample's forward in front of the first block, and behind the last."""
    streams = {"video": video_tokens, "text": text_tokens, "sample": 1}
    ends = [0, 0]
    for name, shape in parameter_shapes(config).items():
        if len(shape) > 1 and not name.startswith("transformer_blocks."):
            ends[name.startswith(("norm_out.", "proj_out."))] += 2 * streams[_rows_of(name)] * prod(shape)
    return ends[0], ends[1]


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


def _rows_of(name: str) -> Literal["video", "text", "sample"]:
    """What a matrix of the published layout multiplies: every video token, every text token, or one row a sample."""
    if name.startswith(("time_text_embed.", "norm_out.")) or ".norm1" in name:
        return "sample"
    if name.startswith("context_embedder.") or any(part in name for part in (".add_", ".to_add_out", ".ff_context.")):
        return "text"
    return "video"


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
