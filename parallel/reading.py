"""Reading files that may be damaged, or that somebody else wrote: no pipe is waited for, no JSON but strict JSON taken.

Everything raised is an OSError or a ValueError; the caller tells which file it is, what it should be and what to do.
"""

import errno
import hashlib
import json
import os
import reprlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

TEXT_LIMIT = 2**28
"""Bytes of a file that is read whole into memory, unless its reader knows better."""


@contextmanager
def open_file(path: str | Path) -> Iterator[IO[bytes]]:
    """Opens a regular file, or a link to one, for reading. OSError for anything else."""
    # Without O_NONBLOCK, opening a named pipe waits for somebody to write to it, possibly for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            number, kind = (errno.EISDIR, "a folder") if stat.S_ISDIR(mode) else (errno.EINVAL, "a pipe or a device")
            raise OSError(number, f"it is {kind}, not a file", str(path))
        file = os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
    with file:
        yield file


def read_bytes(path: str | Path, limit: int = TEXT_LIMIT) -> bytes:
    """A whole file of at most `limit` bytes."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ValueError(f"it has {size} bytes, {limit} are the most that are read")
        return file.read()


def read_text(path: str | Path, limit: int = TEXT_LIMIT) -> str:
    """A whole UTF-8 file."""
    return read_bytes(path, limit).decode("utf-8")


def read_json(path: str | Path, limit: int = TEXT_LIMIT) -> Any:
    """The value in a UTF-8 file of strict JSON: no NaN, no infinity, no key twice in one object."""
    return parse_json(read_bytes(path, limit))


def parse_json(content: bytes) -> Any:
    """The value of UTF-8 strict JSON."""
    try:
        return json.loads(content.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_distinct)
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None


def file_sha256(path: str | Path) -> str:
    """sha256 (hex) of a file, read in pieces."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shown(value: Any) -> str:
    """A value that was read, for a message: as Python writes it, cut where it is long or deep."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    return short.repr(value)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}, which is no number of JSON")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it holds the key {twice[:80]!r} twice in one object")
    return values
