"""Weights in safetensors: one file, or several with an index beside them that says which tensor is in which.

diffusers and transformers lay both out alike; only the file's name differs.
"""

import json
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open


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
        raise ValueError(f"{index}: weight_map is {type(places).__name__}; expected tensor names and their files")
    for place in places.values():
        if Path(place).name != place or not place.endswith(".safetensors"):
            raise ValueError(f"{index}: weight_map names {place!r}; expected .safetensors files beside it")
    return {name: file.with_name(place) for name, place in places.items()}


def read_header(path: Path) -> dict[str, Entry]:
    """Tensor name -> its entry in a safetensors file's header. ValueError if that is missing, cut short or none."""
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: Entry(each.get_dtype(), tuple(each.get_shape())) for name, each in slices.items()}
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; expected safetensors") from None
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(f"{path}: truncated or not a safetensors file ({error})") from None


def read_json(path: Path, expected: str = "a JSON object") -> dict:
    """The JSON object in a file; ValueError names the file and what was `expected` of it."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; expected {expected}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: holds a {type(values).__name__}; expected a JSON object")
    return values
