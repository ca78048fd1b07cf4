"""Text encoders by name."""

from pathlib import Path

import torch

from .minilm import MiniLM
from .sd3 import SD3Text
from .text import TextEncoder

TEXTS = {MiniLM.kind: MiniLM.load, SD3Text.kind: SD3Text.load}

FROM_FOLDER = {SD3Text.kind}
"""Encoders whose weights come from a folder; the others bring their own."""


def load_text(
    kind: str, tokens: int | None = None, folder: str | Path | None = None, device: str | torch.device = "cpu"
) -> TextEncoder:
    """The encoder `kind`, with its own or the given number of tokens, its weights from `folder` if it needs one.

    `device` is where large encoders, those with a folder, compute. ValueError for a kind this version lacks, and for a
    folder given to an encoder that brings its own weights.
    """
    if kind not in TEXTS:
        raise ValueError(f"text encoder {kind!r} is not known; known are {', '.join(sorted(TEXTS))}")
    if folder is not None and kind not in FROM_FOLDER:
        raise ValueError(f"text encoder {kind} brings its own weights, but the folder {folder} is given: leave it out")
    options = {"tokens": tokens, "folder": folder, "device": device if kind in FROM_FOLDER else None}
    return TEXTS[kind](**{name: value for name, value in options.items() if value is not None})
