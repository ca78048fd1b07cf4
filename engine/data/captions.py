"""Captions beside a folder of videos: a .csv or .jsonl file with one row for each clip.

    file,caption[,begin,end]          {"file": "a/b.mp4", "caption": "...", "begin": 3.5, "end": 8}

`file` is relative to the video folder; `begin` and `end` are seconds into it, so that one long video may hold several
captioned clips; the frame shown at `end` belongs to the next. Further columns are ignored. A file that cannot be
understood is refused whole, with the line: a typing error must not silently cost clips.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import Any

SUFFIXES = (".csv", ".jsonl")


@dataclass(frozen=True, kw_only=True)
class CaptionRow:
    """What one row says; an empty caption is one that was left out."""

    file: str
    caption: str
    begin: float = 0.0
    """Seconds."""
    end: float | None = None
    """None: the end of the video."""


def read_captions(path: str | Path) -> list[CaptionRow]:
    """Every row, in the file's order. ValueError naming the line for anything that is no such row."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: captions come as {' or '.join(SUFFIXES)}; convert it or rename it")
    text = _read_text(path)
    rows: dict[tuple[str, float, float | None], str] = {}
    captions = []
    for place, fields in _csv_rows(path, text) if path.suffix == ".csv" else _json_rows(path, text):
        row = _row(place, fields)
        key = (row.file, row.begin, row.end)
        if key in rows:
            raise ValueError(f"{place}: {row.file} stands in {rows[key]} already; give begin and end, or remove one")
        rows[key] = place
        captions.append(row)
    if not captions:
        raise ValueError(f"{path}: no row was found; expected one for each clip, with file and caption")
    return captions


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"{path} is no file; give the captions as {' or '.join(SUFFIXES)}")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line}: byte {content[error.start]:#04x} is no UTF-8; save the file as UTF-8 (from Latin-1, "
            "for example: iconv -f latin1 -t utf-8)"
        ) from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(f"{path}, line {line}: a zero byte, as UTF-16 files have; save the file as UTF-8")
    return text


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        names = reader.fieldnames or []
        for needed in ("file", "caption"):
            if names.count(needed) != 1:
                raise ValueError(
                    f"{path}, line 1: the columns are {', '.join(names) or 'none'}; expected file and caption among "
                    "them, once each: correct the first line"
                )
        for fields in reader:
            place = f"{path}, line {reader.line_num}"
            if None in fields:
                raise ValueError(f"{place}: more values than columns; put a caption with commas between quotes")
            yield place, {name: value for name, value in fields.items() if value not in (None, "")}
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}; correct the quotes of that row") from error


def _json_rows(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    # Not splitlines: captions may hold characters that it takes for line ends.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{place}: not JSON ({error}); expected one object a line") from error
        if not isinstance(fields, dict):
            raise ValueError(f"{place}: found {type(fields).__name__}; expected an object with file and caption")
        yield place, {name: value for name, value in fields.items() if value is not None}


def _row(place: str, fields: dict[str, Any]) -> CaptionRow:
    for name in ("file", "caption"):
        value = fields.get(name, "")
        if not isinstance(value, str):
            raise ValueError(f"{place}: {name} is {value!r}; it must be a text")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{place}: {name} holds half a character ({error}); write it out again") from error
    file = PurePosixPath(fields.get("file", ""))
    if not file.parts or file.is_absolute() or ".." in file.parts or "\0" in str(file):
        raise ValueError(f"{place}: file is {fields.get('file', '')!r}; it must be a path below the video folder")
    begin, end = _seconds(place, fields, "begin"), _seconds(place, fields, "end")
    if end is not None and end <= (begin or 0):
        raise ValueError(f"{place}: the clip ends at {end} s and begins at {begin or 0.0} s; it must end later")
    return CaptionRow(file=str(file), caption=fields.get("caption", "").strip(), begin=begin or 0.0, end=end)


def _seconds(place: str, fields: dict[str, Any], name: str) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    try:
        seconds = float(value) if not isinstance(value, bool) else -1.0
    except (TypeError, ValueError, OverflowError):
        seconds = -1.0
    if not (isfinite(seconds) and seconds >= 0):
        raise ValueError(f"{place}: {name} is {value!r}; it must be a number of seconds, 0 or more")
    return seconds
