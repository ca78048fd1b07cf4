"""Text encoders by name."""

from .minilm import MiniLM
from .text import TextEncoder

TEXTS = {MiniLM.kind: MiniLM.load}


def load_text(kind: str, tokens: int | None = None) -> TextEncoder:
    """The encoder `kind`, with its own or the given number of tokens; ValueError for a kind this version lacks."""
    if kind not in TEXTS:
        raise ValueError(f"text encoder {kind!r} is not known; known are {', '.join(sorted(TEXTS))}")
    return TEXTS[kind]() if tokens is None else TEXTS[kind](tokens=tokens)
