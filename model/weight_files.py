"""Weights in safetensors: one file, or several with an index beside them that says which tensor is in which.

diffusers and transformers lay both out alike; only the file's name differs. It is the only form in which weights from
outside a run are ever read: a header of names, types, shapes and places, and then bytes, so that reading runs nothing.
The library checks all places against the file's size before it gives out a tensor.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from ..parallel import reading
from ..parallel.reading import open_file, shown

FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of the header that a weight may have."""

REMEDY = "restore it or fetch it again"


class Entry(NamedTuple):
    """What a file's header says of one tensor."""

    dtype: str
    """safetensors' name of it, such as F32 or BF16."""
    shape: tuple[int, ...]


def index_of(file: Path) -> Path:
    """Where the index lies that stands for `file` if its weights are cut into several."""
    return file.with_name(f"{file.name}.index.json")


def numbered(file: Path, number: int, count: int) -> Path:
    """File `number`, counted from 1, of the `count` that stand for `file`."""
    return file.with_name(f"{file.stem}-{number:05d}-of-{count:05d}{file.suffix}")


def tensor_files(file: Path) -> dict[str, Path]:
    """Tensor name -> file that holds it, by the index if there is one. ValueError names what is missing or broken."""
    index = index_of(file)
    if not index.exists():
        return dict.fromkeys(read_header(file), file)
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        kind = type(places).__name__
        raise ValueError(f"{index}: weight_map is {kind}; expected tensor names and their files: {REMEDY}")
    for place in places.values():
        if Path(place).name != place or not place.endswith(".safetensors") or not place.isprintable():
            raise ValueError(
                f"{index}: weight_map names {shown(place)}; expected .safetensors files beside it: {REMEDY}"
            )
    return {name: file.with_name(place) for name, place in places.items()}


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a file. ValueError, opened by the path, if it is missing, cut short or none."""
    return _read(path, lambda: load_file(path))


def read_header(path: Path) -> dict[str, Entry]:
    """Tensor name -> its entry in a safetensors file's header. ValueError if that is missing, cut short or none."""

    def header() -> dict[str, Entry]:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: Entry(each.get_dtype(), tuple(each.get_shape())) for name, each in slices.items()}

    return _read(path, header)


def read_json(path: Path, expected: str = "a JSON object") -> dict:
    """The JSON object in a file; ValueError names the file and what was `expected` of it."""
    try:
        values = reading.read_json(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; expected {expected}: give the folder that holds it") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error}): {REMEDY}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: holds a {type(values).__name__}; expected a JSON object: {REMEDY}")
    return values


def _read(path: Path, read: Callable[[], Any]) -> Any:
    try:
        # Not by the library: it would wait for somebody to write into a named pipe.
        with open_file(path):
            return read()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; expected safetensors: {_hint(path)}") from None
    except (SafetensorError, OSError, RuntimeError, TypeError) as error:
        told = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ValueError(f"{path}: truncated or not a safetensors file ({told}): {REMEDY}") from error


def _hint(path: Path) -> str:
    pickles = [each.name for kind in ("*.bin", "*.pt", "*.pth", "*.ckpt") for each in path.parent.glob(kind)]
    if pickles:
        return f"{sorted(pickles)[0]} beside it is a pickle, which could run code and is never read; convert it first"
    return "restore it, or give the folder that holds it"
