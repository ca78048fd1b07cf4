"""The logs of an attempt's ranks: where they lie, and what they and srun say of a failure. Imports no torch.

logs/attempt-N/rank-R.log      what rank R printed while training
logs/attempt-N/srun-rank.log   what srun said, for example which task was killed on which node
"""

import re
from pathlib import Path

from .run_files import LOGS_FOLDER

SRUN_FILE = "srun-rank.log"
TAIL = 16 * 1024
"""Bytes of a log in which its last error is looked for."""
ENDED = re.compile(r"srun: error: (?P<node>[^:\s]+): tasks? (?P<tasks>[^:]+): (?P<how>.+)")
ERROR = re.compile(r"(?:\w+\.)*\w*(?:[Ee]rror|Exception)\b.*")
LEFT = re.compile(r"Exited with exit code (\d+)")
BY_SRUN = ("Terminated",)
"""How those ended whom srun ended because of another."""


def attempt_folders(run: Path) -> list[Path]:
    """Of all attempts, the latest last."""
    found = (run / LOGS_FOLDER).glob("attempt-*")
    return sorted((path for path in found if path.name[8:].isdigit()), key=lambda path: int(path.name[8:]))


def what_failed(folder: Path) -> str:
    """One line: which ranks ended how, as srun saw it, and the errors they told; empty where nothing is said."""
    ended = _ended(folder / SRUN_FILE)
    told = _errors(folder)
    return "; ".join([*ended, *told])


def exit_codes(folder: Path) -> set[int]:
    """With which ranks left by themselves, not 0, as srun saw it; its own status may be that of ranks it ended."""
    matches = [match for line in _tail(folder / SRUN_FILE) if (match := ENDED.match(line))]
    return {int(left[1]) for match in matches if (left := LEFT.fullmatch(match["how"].strip()))}


def _ended(path: Path) -> list[str]:
    """`rank 3 on n2: Killed` for each of srun's lines about a task, those it ended itself last, and only if alone."""
    matches = [match for line in _tail(path) if (match := ENDED.match(line))]
    first = [match for match in matches if not match["how"].startswith(BY_SRUN)] or matches
    return list(dict.fromkeys(f"rank {match['tasks']} on {match['node']}: {match['how']}" for match in first))


def _errors(folder: Path) -> list[str]:
    """The last error of each rank that told one, `rank 3: the error`, the same words only once; at most three."""
    found: dict[str, str] = {}
    logs = sorted(folder.glob("rank-*.log"), key=lambda path: (len(path.name), path.name))
    for path in logs:
        told = [line for line in _tail(path) if ERROR.match(line)]
        if told:
            found.setdefault(told[-1], path.stem.removeprefix("rank-"))
    return [f"rank {rank}: {line[:400]}" for line, rank in list(found.items())[:3]]


def _tail(path: Path) -> list[str]:
    if not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        return file.read().decode("utf-8", errors="replace").splitlines()
