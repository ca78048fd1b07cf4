"""Codecs and text encoders as a command names them: by kind, or by the folder of their weights."""

import os
from pathlib import Path

import torch

from ..model.codecs import load_codec
from ..model.codecs.codec import Codec
from ..model.codecs.wan import FOLDER_VARIABLE as WAN_VARIABLE
from ..model.codecs.wan import WanCodec
from ..model.text import TEXTS, load_text
from ..model.text.sd3 import SD3Text
from ..model.text.text import TextEncoder
from ..parallel.accelerator import present, shared_device
from ..parallel.world import local_rank


def open_codec(given: str) -> Codec:
    """`wan` (its folder in CONTENTV_WAN), or a folder: of a Wan VAE, of a pipeline with one, or of a saved codec.

    ValueError if there is none.
    """
    if given == WanCodec.kind:
        given = os.environ.get(WAN_VARIABLE, "")
        if not given:
            raise ValueError(f"codec wan needs the folder of a Wan VAE: name that folder, or set {WAN_VARIABLE} to it")
    elif not Path(given).is_dir():
        raise ValueError(f"codec {given!r} is neither wan nor a folder; give one of them")
    return load_codec(Path(given))


def open_text(given: str, tokens: int | None = None, device: str | torch.device = "cpu") -> TextEncoder:
    """A kind (sd3 looks for its folder in CONTENTV_SD3), or the folder of a Stable Diffusion 3 pipeline.

    ValueError if there is none.
    """
    if given not in TEXTS and Path(given).is_dir():
        return load_text(SD3Text.kind, tokens, given, device)
    return load_text(given, tokens, device=device)


def local_device() -> torch.device:
    """The accelerator of this process among those of its node, which share them out by their local rank."""
    return shared_device(present(), local_rank(os.environ))
