"""Codecs by name: which class reads a saved codec folder."""

from pathlib import Path

from .codec import Codec, read_settings
from .pca import PCACodec
from .wan import WanCodec, is_vae_folder

CODECS = {PCACodec.kind: PCACodec.load, WanCodec.kind: WanCodec.load_reference}


def load_codec(folder: Path) -> Codec:
    """The codec saved in `folder`, or the Wan VAE whose own folder it is.

    ValueError if it is absent, altered or of a kind this version does not know.
    """
    if is_vae_folder(folder):
        return WanCodec.load(folder)
    kind = read_settings(folder)["kind"]
    if kind not in CODECS:
        raise ValueError(f"{folder} holds a codec of kind {kind!r}; known kinds are {', '.join(sorted(CODECS))}")
    return CODECS[kind](folder)
