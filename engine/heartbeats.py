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
    """None where no rank has written any."""
    path = folder / HEARTBEATS_FILE
    if not path.is_file():
        return None
    content = read_json(path, 2**26)
    return Heartbeats(written=content["time"], ranks=tuple(Sighting(**rank) for rank in content["ranks"]))
