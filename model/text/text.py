"""What a text encoder is: captions to token features and one pooled feature, as SD3's transformer takes them.

Source: Stable Diffusion 3, arXiv 2403.03206, section 4 and appendix B.3 (token sequence for joint attention, pooled
vector for the modulation). CLIP-L + CLIP-G + T5-XXL (333 tokens x 4096, pooled 2048) fits the same protocol.
"""

from typing import Protocol

from torch import Tensor


class TextEncoder(Protocol):
    """A text encoder with frozen weights."""

    kind: str
    """The name `load_text` knows it by."""
    identity: str
    """sha256 (hex) over kind, settings and weights: equal identities mean equal features."""
    tokens: int
    """T: every caption fills exactly this many positions, cut or zero-padded."""
    width: int
    """Features of one token."""
    pooled_width: int

    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """tokens_BTW and pooled_BW, float32 on the CPU. The empty caption is allowed: guidance needs it."""
        ...
