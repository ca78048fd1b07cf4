"""Worlds of several ranks for tests, on one machine, at the cost of a fork each.

    with RankServer(folder) as server:
        results = server.run(2, "contentv.tests.parallel.programs:train", steps=3)

A server process imports torch and megatron once, computes nothing, and forks the ranks of every world from that clean
state: forking a process whose OpenMP pool has run, such as pytest itself, can hang. Ranks write to files, never to a
pipe: a helper process that outlives a rank would hold a pipe open.
"""

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

GRACE = 3.0
"""Seconds that the other ranks get once one has failed, so that the first failure is the one that is shown."""
SHOWN = 4000
"""Characters of a failing rank's log in the error."""


class RankFailure(AssertionError):
    """A rank raised, died or ran out of time; the message is its log's end."""


class RankServer:
    """The clean process and the folder its worlds write to; a context manager."""

    def __init__(self, folder: Path, **variables: str):
        """`variables`: of the server's environment and its ranks', beside this process's own."""
        self.folder = folder
        self.worlds = 0
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CONTENTV_DEVICE": "cpu"} | variables
        with (folder / "server.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "contentv.tests.ranks"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def run(self, world: int, program: str, *, timeout: float = 120, **arguments: Any) -> list[Any]:
        """Runs `module:function` with these (JSON) arguments in `world` ranks; each rank's (JSON) result, by rank.

        Raises RankFailure with the end of the first failing rank's log; no process of the world is left then, nor
        after success.
        """
        folder = self.folder / f"world-{self.worlds:03d}"
        folder.mkdir()
        self.worlds += 1
        job = {"world": world, "program": program, "timeout": timeout, "folder": str(folder), "arguments": arguments}
        self.process.stdin.write(json.dumps(job).encode() + b"\n")
        self.process.stdin.flush()
        failed = json.loads(self._answer(timeout + 60))
        if failed:
            rank, how = failed
            log = (folder / f"rank-{rank}.log").read_text(errors="replace")
            raise RankFailure(f"rank {rank} of {world} {how}, running {program}:\n{log[-SHOWN:]}")
        return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(world)]

    def _answer(self, seconds: float) -> bytes:
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        answer = self.process.stdout.readline() if ready else b""
        if not answer:
            self.close()
            raise RankFailure(f"the rank server is gone or hangs:\n{(self.folder / 'server.log').read_text()[-SHOWN:]}")
        return answer

    def close(self) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:
            _kill_group(self.process.pid)
            self.process.wait()
        self.process.stdout.close()

    def __enter__(self) -> "RankServer":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def serve() -> None:
    """The server process: one job a line on stdin, `null` or [rank, how it failed] a line on stdout."""
    # What ranks need, imported once. Nothing here may compute: every rank starts as a copy of this process.
    importlib.import_module("contentv.parallel.megatron")
    importlib.import_module("torch._dynamo")
    for line in sys.stdin.buffer:
        print(json.dumps(_run_world(json.loads(line))), flush=True)


def _run_world(job: dict) -> tuple[int, str] | None:
    port = _free_port()
    ranks = {_fork_rank(job, rank, port): rank for rank in range(job["world"])}
    deadline = time.monotonic() + job["timeout"]
    running, failures = dict(ranks), {}
    try:
        while running and time.monotonic() < deadline:
            ended, status = os.waitpid(-1, os.WNOHANG)
            if not ended:
                time.sleep(0.01)
                continue
            rank = running.pop(ended)
            if status:
                failures[rank] = f"ended with status {os.waitstatus_to_exitcode(status)}"
                deadline = min(deadline, time.monotonic() + GRACE)
        if running and not failures:
            failures[min(running.values())] = f"did not end within {job['timeout']} seconds"
    finally:
        for process in ranks:
            _kill_group(process)  # a rank that ended may have left helpers
        for process in running:
            os.waitpid(process, 0)
    return _first(failures, Path(job["folder"]))


def _first(failures: dict[int, str], folder: Path) -> tuple[int, str] | None:
    """The rank that failed before the others, who fail because of it: a busy machine may hear of them all at once."""

    def raised(rank: int) -> float:
        note = folder / f"rank-{rank}.raised"
        return float(note.read_text()) if note.exists() else 0.0  # killed, or still running: it told nobody

    rank = min(failures, key=raised, default=None)
    return None if rank is None else (rank, failures[rank])


def _fork_rank(job: dict, rank: int, port: int) -> int:
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.setsid()
        _redirect(Path(job["folder"]) / f"rank-{rank}.log")
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(job["world"])}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        module, function = job["program"].split(":")
        result = getattr(importlib.import_module(module), function)(**job["arguments"])
        (Path(job["folder"]) / f"rank-{rank}.json").write_text(json.dumps(result))
        status = 0
    except BaseException:
        (Path(job["folder"]) / f"rank-{rank}.raised").write_text(repr(time.monotonic()))
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _redirect(log: Path) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for source, target in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(source, target)


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    serve()
