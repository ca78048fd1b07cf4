"""What a video codec is: pixels to latents and back, at the shape every codec of this engine shares.

1 + 4k frames become 1 + k latent frames, each 8x smaller in rows and columns, 16 channels: the geometry of the Wan2.1
VAE (arXiv 2503.20314, section 4.1), so that it and the embedded PCA codec are interchangeable. Encoding is causal: a
latent depends on its own frames and earlier ones only, so a clip's first latent is that of its first frame alone and an
image is a clip of one frame.
"""

import hashlib
import json
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save
from torch import Tensor

from ...parallel.reading import read_json
from ..weight_files import read_tensors

SETTINGS_FILE = "codec.json"
TENSORS_FILE = "codec.safetensors"


class Codec(Protocol):
    """A codec with frozen weights.

    `latents_BCFYX` are float32 and normalised: about zero mean and unit variance per channel over training data.
    `pixels_B3FYX` are float32 in [-1, 1], red, green, blue. Both keep the device of their input.
    """

    kind: str
    """The name `load_codec` knows it by."""
    channels: int
    identity: str
    """sha256 (hex) over kind and tensors: equal identities mean equal latents."""

    def encode(self, pixels_B3FYX: Tensor) -> Tensor:
        """Latents [B, C, 1 + k, Y / 8, X / 8] of 1 + 4k frames; ValueError for any other count or size."""
        ...

    def decode(self, latents_BCFYX: Tensor) -> Tensor:
        """Pixels [B, 3, 1 + 4k, 8 Y, 8 X] of 1 + k latents, clamped to [-1, 1]."""
        ...

    def save(self, folder: Path) -> None:
        """Writes everything `load_codec(folder)` needs."""
        ...


def identity_of(kind: str, tensors: dict[str, Tensor]) -> str:
    """sha256 (hex) over kind and every tensor's name, dtype, shape and bytes, in the order of their names."""
    digest = hashlib.sha256(kind.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def save_tensors(folder: Path, kind: str, tensors: dict[str, Tensor]) -> None:
    """Writes a codec's kind, identity and tensors to `folder`, which is made if need be."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Not safetensors' save_file: that makes files only their owner may read, and data folders are shared.
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    (folder / TENSORS_FILE).write_bytes(content)
    write_settings(folder, kind, identity_of(kind, tensors))


def write_settings(folder: Path, kind: str, identity: str, **others: str) -> None:
    """Writes what `read_settings` reads to `folder`, which is made if need be."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    settings = {"kind": kind, "identity": identity, **others}
    (Path(folder) / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n")


def read_settings(folder: Path) -> dict[str, str]:
    """What codec.json says: `kind` and `identity` at least; ValueError naming the folder if it holds no codec."""
    try:
        settings = read_json(Path(folder) / SETTINGS_FILE)
        if not all(isinstance(settings[name], str) for name in ("kind", "identity")):
            raise TypeError("kind and identity must be strings")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} holds no readable codec ({type(error).__name__}: {error}); expected {SETTINGS_FILE}: give the "
            "`codec` folder of a shard folder or a run, or the folder of a Wan VAE"
        ) from error
    return settings


def saved_identity(folder: Path) -> str:
    """Identity of the codec saved in `folder`, after its tensors, if it is no reference to some, were compared with it.

    ValueError if it is absent, broken or altered.
    """
    settings = read_settings(folder)
    if "source" not in settings:
        load_tensors(folder)
    return settings["identity"]


def load_tensors(folder: Path) -> tuple[str, dict[str, Tensor]]:
    """Kind and tensors that `save_tensors` wrote; ValueError naming the file if one is absent, broken or altered."""
    settings, tensors_file = read_settings(folder), Path(folder) / TENSORS_FILE
    kind, recorded = settings["kind"], settings["identity"]
    try:
        tensors = read_tensors(tensors_file)
        if wrong := [name for name, tensor in tensors.items() if tensor.dtype != torch.float32]:
            raise ValueError(f"tensor {wrong[0]} is {tensors[wrong[0]].dtype}; expected torch.float32")
    except ValueError as error:
        raise ValueError(
            f"{tensors_file}: not readable ({error}); expected the tensors of codec {kind}: restore it or encode the "
            "data again"
        ) from error
    found = identity_of(kind, tensors)
    if found != recorded:
        raise ValueError(
            f"{tensors_file} has identity {found}, {SETTINGS_FILE} says {recorded}: one of the two was altered; "
            "restore the pair or encode the data again"
        )
    return kind, tensors
