"""checkpoint.json and manifest.json changed on purpose, their own digest made right again: what lies behind is met."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from contentv.engine.checkpoints import FACTS_FILE
from contentv.engine.data.manifest import digest_of


def change_sealed(path: Path, change: Callable[[dict], None]) -> None:
    """`change` works on the content; the file is written with the digest of the result."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps({**content, "digest": digest_of(content)}))


def replace_recorded(checkpoint: Path, name: str, content: bytes) -> None:
    """Another file in the place of one of a checkpoint's, and recorded as if the run had written it."""
    (checkpoint / name).write_bytes(content)
    record = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    change_sealed(checkpoint / FACTS_FILE, lambda facts: facts["files"].update({name: record}))
