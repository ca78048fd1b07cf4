"""The MM-DiT's shape, the two shapes the project names, and what flow matching draws.

Imports no torch, so that help, recipes, the cost model and the planner answer at once on a login node.
Sources: ContentV report arXiv 2506.05343; Stable Diffusion 3, arXiv 2403.03206 (MM-DiT).
"""

from dataclasses import dataclass
from math import isfinite
from typing import Literal, get_args

Position = Literal["sincos3d", "rope3d"]
Initialisation = Literal["adaln_zero", "normal"]
Density = Literal["uniform", "logit_normal"]
Recompute = Literal["none", "selective", "full"]

PATCH = 2
"""Rows and columns of latent that make one token; time is never patched."""

MLP_RATIO = 4
"""MLP width over the transformer's width; the published layout has no field for another."""

NORM_EPSILON = 1e-6
"""Of every LayerNorm and RMSNorm in the published model."""

ROPE_THETA = 10_000.0

MOST_LAYERS = 4096
WIDEST = 2**24
"""Of every size but the layers. A hundred times what exists: a file that says more is damaged."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of one video MM-DiT (dual-stream transformer with joint attention).

    Widths count features, `text_width` and `pooled_width` being those of the text encoder. The transformer's own
    width is heads x head_width.
    """

    layers: int
    """MM-DiT blocks; the last one's text stream only lends keys and values."""
    heads: int
    head_width: int
    text_width: int
    pooled_width: int
    channels: int = 16
    """Latent channels of the codec."""
    position: Position = "sincos3d"
    """sincos3d: added to the patch embedding, as published; rope3d: rotates video queries and keys."""
    initialisation: Initialisation = "adaln_zero"
    """adaln_zero: every block starts as the identity; normal: every matrix N(0, 0.02), which makes layout tests see."""

    def __post_init__(self):
        for name in ("layers", "heads", "head_width", "text_width", "pooled_width", "channels"):
            most = MOST_LAYERS if name == "layers" else WIDEST
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"model.{name} is {getattr(self, name)}; it must be at least 1 and at most {most}")
        if self.position == "sincos3d" and self.width % 16:
            raise ValueError(
                f"model.heads x model.head_width is {self.heads} x {self.head_width} = {self.width}; sincos3d "
                "positions need a multiple of 16 (a quarter of the width for time, three eighths each for rows and "
                "columns, in sine-cosine pairs): change heads or head_width, or choose model.position rope3d"
            )
        if self.position == "rope3d" and self.head_width % 16:
            raise ValueError(
                f"model.head_width is {self.head_width}; rope3d rotates pairs on three axes of 1/4, 3/8 and 3/8 of it: "
                "choose a multiple of 16"
            )

    @property
    def width(self) -> int:
        return self.heads * self.head_width

    @property
    def mlp_width(self) -> int:
        return MLP_RATIO * self.width

    @property
    def token_width(self) -> int:
        """Latent values in one token: channels x 2 rows x 2 columns."""
        return self.channels * PATCH * PATCH


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Which noise levels training sees, and how often it sees no caption.

    ContentV publishes none of these values (nor does Stable Diffusion 3.5 its training's): they are ours to choose.
    Sources: Stable Diffusion 3, arXiv 2403.03206, section 3.1 (densities) and equation 23 (shift).
    """

    density: Density = "logit_normal"
    """Of sigma before the shift. uniform: on (0, 1); logit_normal: the sigmoid of a normal variable."""
    mean: float = 0.0
    """Of the normal variable under logit_normal; positive favours noise."""
    std: float = 1.0
    """Of the normal variable under logit_normal."""
    shift: float = 1.0
    """s in sigma' = s sigma / (1 + (s - 1) sigma), in training and sampling alike; 1 changes nothing."""
    shift_reference_tokens: int = 0
    """0: the shift is fixed; else it is shift x sqrt(video tokens / this), so that longer videos see more noise."""
    caption_dropout: float = 0.1
    """Share of the samples trained with the empty caption, which is what guidance subtracts."""

    def __post_init__(self):
        if self.density not in get_args(Density):
            raise ValueError(f"flow.density is {self.density!r}; choose one of {', '.join(get_args(Density))}")
        if not isfinite(self.mean):
            raise ValueError(f"flow.mean is {self.mean}; it must be a finite number")
        for name in ("std", "shift"):
            if not (isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"flow.{name} is {getattr(self, name)}; it must be a finite number above 0")
        if not 0 <= self.shift_reference_tokens < 2**63:
            raise ValueError(
                f"flow.shift_reference_tokens is {self.shift_reference_tokens}; it must be 0 (a fixed shift) or a "
                "number of video tokens"
            )
        if not 0 <= self.caption_dropout <= 1:
            raise ValueError(f"flow.caption_dropout is {self.caption_dropout}; it must be from 0 to 1")


def contentv_8b() -> ModelConfig:
    """The published ContentV transformer: 38 blocks, 38 heads x 64, T5-XXL + CLIP text."""
    return ModelConfig(layers=38, heads=38, head_width=64, text_width=4096, pooled_width=2048)


def quickstart() -> ModelConfig:
    """A transformer two CPU cores train in minutes, on MiniLM text (384 wide)."""
    return ModelConfig(layers=4, heads=4, head_width=64, text_width=384, pooled_width=384, position="rope3d")
