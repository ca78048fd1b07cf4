"""Refuses, before any work is done, a place that its result could not be written to. Imports no torch."""

import os
from pathlib import Path


def check_folder(option: str, folder: str | Path) -> None:
    """ValueError, naming `option`, where `folder` is no folder one may write to, nor could be made. Makes none."""
    folder = Path(folder)
    place = folder
    # lexists: a link that points nowhere stands in the way too.
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise ValueError(f"{option} is {folder}, but {place} is not a folder: remove it, or choose another place")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"{option} is {folder}, but {place} may not be written to: choose another place")


def check_places(option: str, folder: str | Path, *, files: tuple[str, ...], folders: tuple[str, ...]) -> None:
    """ValueError, naming `option`, where something else lies in `folder` under the names of its files and folders."""
    for names, kind, fits in ((files, "file", Path.is_file), (folders, "folder", Path.is_dir)):
        for name in names:
            path = Path(folder) / name
            if os.path.lexists(path) and not fits(path):
                raise ValueError(f"{option} is {folder}, but {path} is no {kind}: remove it, or choose another place")


def check_file(option: str, file: str | Path) -> None:
    """ValueError, naming `option`, where `file` is a folder, or lies where none can be written."""
    if Path(file).is_dir():
        raise ValueError(f"{option} is {file}, which is a folder: name a file in it")
    check_folder(option, Path(file).parent)
