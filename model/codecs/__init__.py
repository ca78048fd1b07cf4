"""Codecs by name: which class reads a saved codec folder."""

from pathlib import Path

from .codec import Codec, load_tensors
from .pca import PCACodec

CODECS = {PCACodec.kind: PCACodec}


def load_codec(folder: Path) -> Codec:
    """The codec saved in `folder`; ValueError if it is absent, altered or of a kind this version does not know."""
    kind, tensors = load_tensors(folder)
    if kind not in CODECS:
        raise ValueError(f"{folder} holds a codec of kind {kind!r}; known kinds are {', '.join(sorted(CODECS))}")
    return CODECS[kind](tensors)
