"""Which Slurm jobs were sent for a run: jobs.jsonl in its folder, one JSON object a line: job, script (a folder), time.

Imports no torch.
"""

import contextlib
import json
from pathlib import Path

SENT_FILE = "jobs.jsonl"
SCRIPT_FILE = "job.sbatch"


def sent_jobs(run: Path) -> list[str]:
    """Numbers of the jobs, in the order in which they were sent; `17_2` for a task of an array."""
    path = run / SENT_FILE
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            found.append(str(json.loads(line)["job"]))
    return found
