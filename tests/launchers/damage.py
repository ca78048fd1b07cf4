"""Ways to damage one file, the same every time: cut, flipped, swapped for something else, or changed in one field.

A damage is a function of (path, aside, draw): the good file lies at `aside`, `path` is free and is to be made broken,
and `draw` is a random generator seeded with the case's name. Nothing here knows what the files mean.
"""

import json
import os
import struct
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import yaml

from contentv.engine.data.manifest import digest_of

Damage = Callable[[Path, Path, Random], None]


def of_bytes(change: Callable[[bytes, Random], bytes]) -> Damage:
    return lambda path, aside, draw: path.write_bytes(change(aside.read_bytes(), draw)) and None


def flip(first: float, last: float) -> Damage:
    """One bit, somewhere between these shares of the file's length."""

    def change(content: bytes, draw: Random) -> bytes:
        place = draw.randrange(int(first * len(content)), max(int(first * len(content)) + 1, int(last * len(content))))
        return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]

    return of_bytes(change)


CUTS = {
    "empty": of_bytes(lambda _content, _draw: b""),
    "one byte": of_bytes(lambda content, _draw: content[:1]),
    "half": of_bytes(lambda content, _draw: content[: len(content) // 2]),
    "cut somewhere": of_bytes(lambda content, draw: content[: draw.randrange(2, len(content) - 1)]),
    "a byte less": of_bytes(lambda content, _draw: content.rstrip(b"\n")[:-1]),
    "a byte more": of_bytes(lambda content, draw: content + draw.randbytes(1)),
}
FLIPS = {
    "flip at the start": flip(0, 0.02),
    "flip in the first half": flip(0.02, 0.5),
    "flip in the second half": flip(0.5, 0.98),
    "flip at the end": flip(0.98, 1),
}
FILLED = {
    "noise": of_bytes(lambda content, draw: draw.randbytes(len(content))),
    "zeros": of_bytes(lambda content, _draw: bytes(len(content))),
}
OTHER_KINDS: dict[str, Damage] = {
    "absent": lambda path, aside, draw: None,
    "a folder": lambda path, aside, draw: path.mkdir(),
    "a pipe": lambda path, aside, draw: os.mkfifo(path),
    "a link to nowhere": lambda path, aside, draw: path.symlink_to("nowhere"),
    "a link to itself": lambda path, aside, draw: path.symlink_to(path.name),
}
EVERY = CUTS | FLIPS | FILLED | OTHER_KINDS


def text(content: str | bytes) -> Damage:
    """Something else altogether."""
    plain = content.encode() if isinstance(content, str) else content
    return lambda path, aside, draw: path.write_bytes(plain) and None


def of_json(change: Callable[[Any], Any]) -> Damage:
    """A JSON file of which `change` alters the value in place."""

    def damage(path: Path, aside: Path, _draw: Random) -> None:
        content = json.loads(aside.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return damage


def sealed(change: Callable[[Any], Any]) -> Damage:
    """As `of_json`, with the file's own digest made right again: what lies behind that check is met."""

    def damage(path: Path, aside: Path, _draw: Random) -> None:
        content = json.loads(aside.read_text())
        change(content)
        path.write_text(json.dumps({**content, "digest": digest_of(content)}))

    return damage


def of_yaml(change: Callable[[Any], Any]) -> Damage:
    def damage(path: Path, aside: Path, _draw: Random) -> None:
        content = yaml.safe_load(aside.read_text())
        change(content)
        path.write_text(yaml.safe_dump(content, sort_keys=False))

    return damage


def of_header(change: Callable[[dict], Any]) -> Damage:
    """A safetensors file whose header `change` alters in place; the bytes behind it stay."""

    def change_bytes(content: bytes, _draw: Random) -> bytes:
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        change(header)
        written = json.dumps(header).encode()
        return struct.pack("<Q", len(written)) + written + content[8 + length :]

    return of_bytes(change_bytes)


def header_length(length: int) -> Damage:
    """A safetensors file that says its header has so many bytes."""
    return of_bytes(lambda content, _draw: struct.pack("<Q", length) + content[8:])


@contextmanager
def damaged(path: Path, damage: Damage, name: str, aside: Path):
    """`path` is broken inside, and what it was again afterwards."""
    path.rename(aside)
    others = set(path.parent.iterdir())
    try:
        damage(path, aside, Random(name))
        yield
    finally:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        for surplus in set(path.parent.iterdir()) - others:
            surplus.unlink()
        aside.rename(path)
