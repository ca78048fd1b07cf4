"""`contentv logs RUN --rank N`: what a rank printed in its latest attempt, or an earlier one; --follow goes on showing.

Followed, it moves to the next attempt when the run is started again, and ends when the run does.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ..engine.rank_logs import attempt_folders
from ..engine.restarts import Restarts
from .command_line import call, tell

LOOK = 0.5
"""Seconds between two looks at a file that is followed."""
INTERRUPTED = 130


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    try:
        return call(run, argv)
    except KeyboardInterrupt:
        return INTERRUPTED


def run(argv: Sequence[str]) -> int:
    options = parse(argv)
    folder = Path(options.run)
    attempts = attempt_folders(folder)
    if options.attempt:
        attempts = [path for path in attempts if path.name == f"attempt-{options.attempt}"]
    if not attempts:
        raise ValueError(f"{folder} has no logs{f' of attempt {options.attempt}' if options.attempt else ''}: contentv "
                         f"launch makes them, one folder an attempt; contentv status {folder} lists these")  # fmt: skip
    path = log_of(attempts[-1], options.rank)
    if not options.follow:
        tell(f"--- {path}")
        print(path.read_text(encoding="utf-8", errors="replace"), end="")
        return 0
    follow(folder, path, options.rank)
    return 0


def log_of(attempt: Path, rank: int) -> Path:
    path = attempt / f"rank-{rank}.log"
    if not path.is_file():
        ranks = sorted(int(each.stem[5:]) for each in attempt.glob("rank-*.log"))
        there = f"ranks {ranks[0]} to {ranks[-1]} are there" if ranks else "no rank has started yet"
        raise ValueError(f"{attempt.name} has no log of rank {rank}: {there}")
    return path


def follow(folder: Path, path: Path, rank: int) -> None:
    """Shows what is added until the run ends: complete, or not to be started again."""
    while path is not None:
        tell(f"--- {path}")
        with path.open(encoding="utf-8", errors="replace") as file:
            following = None
            is_over = False
            while following is None and not is_over:
                # Asked before the last read, so that nothing written until then is lost.
                is_over = _is_over(folder)
                following = _later(folder, path, rank)
                print(file.read(), end="", flush=True)
                if following is None and not is_over:
                    time.sleep(LOOK)
        path = following


def _later(folder: Path, path: Path, rank: int) -> Path | None:
    latest = attempt_folders(folder)[-1]
    log = latest / f"rank-{rank}.log"
    return log if latest != path.parent and log.is_file() else None


def _is_over(folder: Path) -> bool:
    attempts = Restarts(folder).attempts()
    return not attempts or (attempts[-1].ended is not None and attempts[-1].next != "again")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="contentv logs", description=__doc__.split(": ", 1)[1])
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("--rank", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument("--attempt", type=int, default=0, metavar="N", help="default: the latest")
    parser.add_argument("--follow", action="store_true", help="go on showing what is added, until the run ends")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
