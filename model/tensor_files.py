"""safetensors files, whoever wrote them: the only form in which weights from outside a run are ever read.

A file holds a header of names, types, shapes and places, and then bytes: reading it runs nothing. The library checks
all places against the file's size before it gives out a tensor.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from ..parallel.reading import open_file

FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of the header that a weight may have."""


class TensorHeader(NamedTuple):
    """What a file's header says of one tensor."""

    dtype: str
    """safetensors' name of it: F32."""
    shape: tuple[int, ...]


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a file. ValueError, opened by the path, if it is missing, truncated or no such file."""
    return _read(path, lambda: load_file(path))


def read_header(path: Path) -> dict[str, TensorHeader]:
    """Every tensor's name, type and shape, without its values. ValueError as `read_tensors`."""

    def header() -> dict[str, TensorHeader]:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: TensorHeader(each.get_dtype(), tuple(each.get_shape())) for name, each in slices.items()}

    return _read(path, header)


def _read(path: Path, read):
    try:
        # Not by the library: it would wait for somebody to write into a named pipe.
        with open_file(path):
            return read()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; expected safetensors: {_hint(path)}") from None
    except (SafetensorError, OSError, RuntimeError, TypeError) as error:
        told = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ValueError(
            f"{path}: truncated or not a safetensors file ({told}): restore it or fetch it again"
        ) from error


def _hint(path: Path) -> str:
    pickles = [each.name for kind in ("*.bin", "*.pt", "*.pth", "*.ckpt") for each in path.parent.glob(kind)]
    if pickles:
        return f"{sorted(pickles)[0]} beside it is a pickle, which could run code and is never read; convert it first"
    return "restore it, or give the folder that holds it"
