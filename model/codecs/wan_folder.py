"""A Wan VAE's folder in diffusers' layout: its settings and weights, read, checked, and refused by name.

diffusers would read a wrong folder with a warning and fill what is absent with random numbers.
"""

from math import isfinite
from pathlib import Path
from typing import Any

from torch import Tensor

from ...parallel.reading import read_json
from ..clip_size import FRAMES_PER_LATENT, PIXELS_PER_LATENT
from ..weight_files import read_tensors, tensor_files

CLASS = "AutoencoderKLWan"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"

SETTINGS = {
    "base_dim": 96,
    "decoder_base_dim": None,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
    "latents_mean": None,
    "latents_std": None,
}
"""What may differ between VAEs (diffusers' names) and the published values. With the weights they decide everything, so
they are in the identity; a mean or spread that is absent is diffusers' own default, which is Wan2.1's."""

FIXED = {
    "attn_scales": [],
    "in_channels": 3,
    "out_channels": 3,
    "is_residual": False,
    "patch_size": None,
    "scale_factor_temporal": FRAMES_PER_LATENT,
    "scale_factor_spatial": PIXELS_PER_LATENT,
}
"""What must not differ: other values make Wan2.2's or another VAE, of another geometry or other layers."""


def vae_folder(folder: str | Path) -> Path:
    """`folder`, or the `vae` folder of the pipeline it is."""
    folder = Path(folder)
    return folder / "vae" if not (folder / CONFIG_FILE).is_file() and (folder / "vae").is_dir() else folder


def is_vae_folder(folder: str | Path) -> bool:
    """Whether a Wan VAE may be loaded from `folder`: its config.json says so."""
    try:
        config = read_json(vae_folder(folder) / CONFIG_FILE)
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("_class_name") == CLASS


def read_config(folder: Path) -> dict[str, Any]:
    """The settings in config.json, for AutoencoderKLWan.from_config; ValueError where they are no VAE of this kind."""
    path = folder / CONFIG_FILE
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: not readable ({type(error).__name__}: {error}); expected the config of {CLASS}: give the folder "
            "of a Wan VAE in diffusers' layout"
        ) from error
    found = content.get("_class_name") if isinstance(content, dict) else type(content).__name__
    if found != CLASS:
        raise ValueError(f"{path}: found class {found!r}; expected {CLASS!r}: give a Wan VAE's folder")
    given = {name: value for name, value in content.items() if not name.startswith("_")}
    given.pop("dropout", None)  # training only
    for name, value in given.items():
        if name not in SETTINGS and (name not in FIXED or value != FIXED[name]):
            expected = repr(FIXED[name]) if name in FIXED else "no such key"
            raise ValueError(f"{path}: found {name} = {value!r}; codec wan reads {expected}: give a Wan2.1 VAE")
    config = SETTINGS | {name: value for name, value in given.items() if name in SETTINGS}
    _check_config(path, config)
    return {name: value for name, value in config.items() if value is not None}


def read_weights(folder: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a VAE's folder, float32, exactly those named and shaped as `expected`, or a ValueError.

    They lie in one file, or in several with an index, in whatever precision.
    """
    path = folder / WEIGHTS_FILE
    try:
        paths = sorted(set(tensor_files(path).values()))
        found = {name: tensor.float() for each in paths for name, tensor in read_tensors(each).items()}
    except ValueError as error:
        raise ValueError(f"{error}; expected {CLASS}'s weights: download them again") from error
    for name in sorted(found.keys() | expected.keys()):
        shapes = [tuple(tensors[name].shape) if name in tensors else "absent" for tensors in (found, expected)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{path}: found {name} {shapes[0]}; expected {shapes[1]}, as {CONFIG_FILE} says: restore the pair"
            )
    return found


def _check_config(path: Path, config: dict[str, Any]) -> None:
    """Refuses settings that are no VAE of this geometry: 8x smaller in space, 4x in time."""

    def counts(values: Any, number: int) -> bool:
        whole = isinstance(values, list) and all(type(value) is int and value > 0 for value in values)
        return whole and len(values) == number

    def numbers(values: Any) -> bool:
        real = isinstance(values, list) and all(type(value) in (int, float) and isfinite(value) for value in values)
        return values is None or (real and len(values) == config["z_dim"])

    time, spread = config["temperal_downsample"], config["latents_std"]
    allowed = {
        "base_dim": (counts([config["base_dim"]], 1), "a positive whole number"),
        "decoder_base_dim": (config["decoder_base_dim"] is None or counts([config["decoder_base_dim"]], 1), "the same"),
        "z_dim": (counts([config["z_dim"]], 1), "a positive whole number"),
        "dim_mult": (counts(config["dim_mult"], 4), "four positive whole numbers"),
        "num_res_blocks": (counts([config["num_res_blocks"]], 1), "a positive whole number"),
        "temperal_downsample": (
            isinstance(time, list) and len(time) == 3 and all(type(value) is bool for value in time) and sum(time) == 2,
            "three booleans, two of them true",
        ),
        "latents_mean": (numbers(config["latents_mean"]), "z_dim numbers"),
        "latents_std": (numbers(spread) and min(spread or [1]) > 0, "z_dim positive numbers"),
    }
    for name, (fine, expected) in allowed.items():
        if not fine:
            raise ValueError(f"{path}: found {name} = {config[name]!r}; expected {expected}: give a Wan2.1 VAE")
