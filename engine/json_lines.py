"""Files of JSON objects, one a line, that only grow; a node that failed while it wrote leaves half a line. No torch."""

import contextlib
import json
import os
from pathlib import Path


def append(path: Path, *records: dict) -> None:
    """Adds the records and waits until they are on disk; what is left of a half line stays on a line of its own."""
    with path.open("a", encoding="utf-8") as file:
        if file.tell() and not path.read_bytes().endswith(b"\n"):
            file.write("\n")
        file.writelines(json.dumps(record) + "\n" for record in records)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[dict]:
    """All whole objects, in order; empty without a file."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                found.append(record)
    return found
