"""Files and folders that are whole or absent: written under another name, synced, renamed.

It stands on the lowest floor that writes to disk, so that checkpoints, published weights, configurations, manifests and
metrics all keep their promise the same way.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields the name to write to; on leaving it becomes `path` in one piece. An exception leaves `path` as it was."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Replaces `path` by UTF-8 `text`, making its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def publish_folder(partial: Path, folder: Path) -> None:
    """Gives a finished folder its name, which must be free, after everything in it is on disk."""
    assert not folder.exists(), f"{folder} is published already"
    sync_tree(partial)
    partial.rename(folder)
    sync(folder.parent)


def sync_tree(folder: Path) -> None:
    """Waits until a folder and everything in it survive a loss of power."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def sync(path: Path) -> None:
    """Waits until a file's bytes, or a folder's names, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
