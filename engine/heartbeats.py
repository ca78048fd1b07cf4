"""heartbeats.json: what every rank of a run last said of itself, written by rank 0 every few seconds. Imports no torch.

One JSON object: time (seconds since 1970, by rank 0's clock), ranks (a list of parallel/sighting.py's Sighting).
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from ..parallel.reading import read_json
from ..parallel.sighting import SILENT, Sighting
from .run_files import HEARTBEATS_FILE

STALE = 4 * SILENT
"""Seconds after which a file that nobody renews says that rank 0 is gone or stuck."""

LIMIT = 2**26
"""Bytes; 65,536 ranks have less."""


@dataclass(frozen=True, kw_only=True)
class Heartbeats:
    written: float
    ranks: tuple[Sighting, ...]

    def is_fresh(self, now: float) -> bool:
        return now - self.written <= STALE


def write(folder: Path, ranks: list[Sighting]) -> None:
    """In one piece, but not synced: the next one comes in seconds, and none is missed after a loss of power."""
    path = folder / HEARTBEATS_FILE
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps({"time": time.time(), "ranks": [asdict(rank) for rank in ranks]}), encoding="utf-8")
    partial.replace(path)


def read(folder: Path) -> Heartbeats | None:
    """None where no rank has written any, or something else lies there."""
    try:
        content = read_json(folder / HEARTBEATS_FILE, LIMIT)
        return Heartbeats(written=content["time"], ranks=tuple(Sighting(**rank) for rank in content["ranks"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
