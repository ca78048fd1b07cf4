"""Folders in the published layout: config.json and safetensors under the names of diffusers' SD3 transformer.

Reading refuses, before any weight is used, what is not exactly the model that config.json describes. Weights may lie in
one file or in several with an index; tensors are read one at a time, and of each only the piece a rank holds.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..parallel.durable import replacing, write_text
from ..parallel.layers import Piece
from ..parallel.reading import shown
from .config import PATCH, ModelConfig, Position
from .cost import parameter_shapes
from .weight_files import FLOATS, index_of, numbered, read_header, read_json, tensor_files
from .weights import Source, published_tensors

CLASS_NAME = "SD3Transformer3DModel"
IMAGE_CLASS = "SD3Transformer2DModel"
"""Stable Diffusion 3.5's image transformer: the same weights but for its table of 2D positions, which is dropped."""
IMAGE_TABLE = "pos_embed.pos_embed"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
FILE_VALUES = 2**30
"""Values one file of weights holds at most, 4 GiB in fp32; a larger model is cut into several, with an index."""

REMEDY = "restore the folder, or correct what was changed in it"

FIXED = {"patch_size": PATCH, "dual_attention_layers": [], "qk_norm": "rms_norm"}
"""Keys of config.json that the ContentV transformer has only one value for."""

SIZES = {
    "num_layers": "layers",
    "num_attention_heads": "heads",
    "attention_head_dim": "head_width",
    "joint_attention_dim": "text_width",
    "pooled_projection_dim": "pooled_width",
    "in_channels": "channels",
}
"""Keys of config.json and the fields of ModelConfig they set."""


@dataclass(frozen=True)
class PublishedFolder:
    """A checked folder: the model it holds and its tensors, read one at a time."""

    config: ModelConfig
    tensor: Source
    files: list[Path]
    position_is_written: bool
    """False: config.json names no position mode, and the caller's or the published one was taken."""


def open_folder(folder: str | Path, position: Position | None = None) -> PublishedFolder:
    """Checks config.json and the header of the weights against each other. ValueError says file, key, found, expected.

    `folder` holds config.json itself or in a subfolder `transformer`, as a pipeline folder does.
    """
    folder = Path(folder)
    if not (folder / CONFIG_FILE).exists() and (folder / "transformer" / CONFIG_FILE).exists():
        folder = folder / "transformer"
    config = read_config(folder / CONFIG_FILE, position)
    values = read_json(folder / CONFIG_FILE)
    ignored = {IMAGE_TABLE} if values["_class_name"] == IMAGE_CLASS else set()
    tensor = _open_weights(folder, parameter_shapes(config), ignored)
    return PublishedFolder(
        config=config,
        tensor=tensor,
        files=sorted(set(tensor_files(folder / WEIGHTS_FILE).values())),
        position_is_written="position" in values,
    )


def read_config(path: Path, position: Position | None = None) -> ModelConfig:
    """The ModelConfig that a published config.json describes."""
    values = read_json(path, f"a published transformer's {CONFIG_FILE}")
    if values.get("_class_name") not in (CLASS_NAME, IMAGE_CLASS):
        found = values.get("_class_name")
        raise ValueError(f"{path}: _class_name is {shown(found)}; expected {CLASS_NAME} or {IMAGE_CLASS}: {REMEDY}")
    for key, expected in FIXED.items():
        if values.get(key, expected) != expected:
            raise ValueError(
                f"{path}: {key} is {shown(values[key])}; expected {expected!r}: this is not a ContentV model, give "
                "another folder"
            )
    sizes = {field: _positive(path, values, key) for key, field in SIZES.items()}
    width = sizes["heads"] * sizes["head_width"]
    for key, expected in (("caption_projection_dim", width), ("out_channels", sizes["channels"])):
        if values.get(key, expected) not in (expected, None):
            raise ValueError(f"{path}: {key} is {shown(values[key])}; expected {expected}: {REMEDY}")
    try:
        return ModelConfig(**sizes, position=_position(path, values.get("position"), position))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def save(model: torch.nn.Module, config: ModelConfig, folder: str | Path) -> None:
    """Writes the whole model (a world of one) in the published layout, config.json last."""
    parameters = dict(model.named_parameters())
    write_tensors(Path(folder), published_tensors(config, lambda name: parameters[name].detach()), config)


def write_tensors(folder: Path, tensors: Iterable[tuple[str, torch.Tensor]], config: ModelConfig) -> None:
    """Weights, their index if they need several files, then config.json: a folder with a config is complete.

    A file is written as soon as its last tensor has come, so memory holds little more than one file's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _remove_weights(folder / WEIGHTS_FILE)
    places = _places(folder / WEIGHTS_FILE, config)
    missing = Counter(places.values())
    contents: dict[Path, dict[str, torch.Tensor]] = {path: {} for path in missing}
    size = 0
    for name, tensor in tensors:
        path, size = places[name], size + tensor.nbytes
        contents[path][name] = tensor.cpu()
        missing[path] -= 1
        if not missing[path]:
            _write(path, contents.pop(path))
    assert not contents, f"tensors that never came leave {sorted(contents)} unwritten"
    if len(missing) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": {name: path.name for name, path in places.items()}}
        write_text(index_of(folder / WEIGHTS_FILE), json.dumps(index, indent=2) + "\n")
    write_text(folder / CONFIG_FILE, json.dumps(published_config(config), indent=2) + "\n")


def _write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    with replacing(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        save_file(tensors, partial, metadata={"format": "pt"})
        # safetensors puts a file there that only its owner may read; published weights are for others too.
        partial.chmod(mode)


def _remove_weights(file: Path) -> None:
    """What an earlier save left in this place, config.json first: without it the folder holds no model."""
    pieces = file.parent.glob(f"{file.stem}-?????-of-?????{file.suffix}")
    for stale in (file.with_name(CONFIG_FILE), index_of(file), file, *pieces):
        stale.unlink(missing_ok=True)


def _places(file: Path, config: ModelConfig) -> dict[str, Path]:
    """Tensor name -> the file it goes to: `file` itself, or the first with room of as many as it takes."""
    numbers, count, filled = {}, 1, 0
    for name, shape in parameter_shapes(config).items():
        if filled and filled + prod(shape) > FILE_VALUES:
            count, filled = count + 1, 0
        numbers[name] = count
        filled += prod(shape)
    return {name: file if count == 1 else numbered(file, number, count) for name, number in numbers.items()}


def published_config(config: ModelConfig) -> dict:
    """config.json's content; `position` is ours, the 2D table's size is what the published class wants to be given."""
    return {
        "_class_name": CLASS_NAME,
        **{key: getattr(config, field) for key, field in SIZES.items()},
        "out_channels": config.channels,
        "caption_projection_dim": config.width,
        "sample_size": 128,
        "pos_embed_max_size": 192,
        "position": config.position,
        **FIXED,
    }


def _open_weights(folder: Path, expected: dict[str, tuple[int, ...]], ignored: set[str]) -> Source:
    """A function that reads one tensor at a time, after all headers were checked against `expected`."""
    whole = folder / WEIGHTS_FILE
    listing = index_of(whole) if index_of(whole).exists() else whole
    files = tensor_files(whole)
    headers = {path: read_header(path) for path in dict.fromkeys(files.values())}
    for name, shape in expected.items():
        if name not in files:
            raise ValueError(f"{listing}: tensor {name} is missing; expected shape {list(shape)}: {REMEDY}")
        found = headers[files[name]].get(name)
        if found is None:
            raise ValueError(f"{files[name]}: tensor {name} is missing, which {listing.name} places here: {REMEDY}")
        if found.shape != shape:
            raise ValueError(
                f"{files[name]}: tensor {name} has shape {list(found.shape)}; expected {list(shape)}: {REMEDY}"
            )
        if found.dtype not in FLOATS:
            raise ValueError(
                f"{files[name]}: tensor {name} is {found.dtype}; expected a floating-point type, one of "
                f"{', '.join(FLOATS)}: {REMEDY}"
            )
    present = files | {name: path for path, header in headers.items() for name in header}
    if surplus := sorted(present.keys() - expected.keys() - ignored):
        raise ValueError(
            f"{present[surplus[0]]}: tensor {surplus[0]} has no place in the model that config.json describes"
            + (f" (nor have {len(surplus) - 1} others)" if len(surplus) > 1 else "")
            + f": {REMEDY}"
        )

    def tensor(name: str, piece: Piece) -> torch.Tensor:
        # Opened for each tensor: a file kept open keeps every page of it that was read in memory.
        with safe_open(files[name], framework="pt") as file:
            return file.get_slice(name)[piece.bounds(expected[name])]

    return tensor


def _positive(path: Path, values: dict, key: str) -> int:
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{path}: {key} is {shown(value)}; expected a whole number of at least 1: {REMEDY}")
    return value


def _position(path: Path, written: str | None, argument: Position | None) -> Position:
    allowed = ("sincos3d", "rope3d")
    for origin, value in ((f"{path}: position", written), ("the position asked for", argument)):
        if value not in (*allowed, None):
            raise ValueError(f"{origin} is {shown(value)}; expected {' or '.join(allowed)}: correct it")
    if written and argument and written != argument:
        raise ValueError(f"{path}: position is {written}, but {argument} was asked for: leave it out or correct it")
    return written or argument or "sincos3d"
