"""What a text encoder is: captions to token features and one pooled feature, as SD3's transformer takes them.

Source: Stable Diffusion 3, arXiv 2403.03206, section 4 and appendix B.3 (token sequence for joint attention, pooled
vector for the modulation). CLIP-L + CLIP-G + T5-XXL (333 tokens x 4096, pooled 2048) fits the same protocol.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
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


@torch.no_grad()
def encode_one_by_one(
    encoder: TextEncoder, encode_one: Callable[[str], tuple[Tensor, Tensor]], captions: list[str]
) -> tuple[Tensor, Tensor]:
    """`TextEncoder.encode` from tokens_TW and pooled_W of one caption at a time.

    A matrix product's rounding may depend on the batch; a caption's features must not.
    """
    if not captions:
        return torch.zeros(0, encoder.tokens, encoder.width), torch.zeros(0, encoder.pooled_width)
    features = [encode_one(caption) for caption in captions]
    return torch.stack([tokens for tokens, _ in features]), torch.stack([pooled for _, pooled in features])


@contextmanager
def without_bars() -> Iterator[None]:
    """transformers draws a bar for every load: noise beside a command's own lines."""
    from transformers.utils import logging

    were_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_shown:
            logging.enable_progress_bar()
