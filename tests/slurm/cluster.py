"""A real Slurm on one machine: munge, a controller and four virtual nodes, without systemd, all below one folder."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PACKAGES = ("slurm-wlm", "munge", "slurm-wlm-basic-plugins")
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun")
NODES = ("n1", "n2", "n3", "n4")
PROLOG = """#!/bin/bash
# What a task of a node whose GPU has fallen off the bus finds: torch sees no device.
[ -e "@BASE@/lost-$SLURMD_NODENAME" ] && echo "export CONTENTV_DEVICE=cuda"
exit 0
"""
UP_WITHIN = 30
"""Seconds."""


def install() -> None:
    """Debian's packages, where they are lacking. Raises RuntimeError for anyone but root, or where apt-get is none."""
    if os.geteuid():
        raise RuntimeError("the drills need root: Slurm's and munge's daemons start as it, and disks are mounted")
    if all(shutil.which(program) for program in PROGRAMS):
        return
    if not shutil.which("apt-get"):
        raise RuntimeError(f"the drills need {', '.join(PACKAGES)}: install them, or run on Debian or Ubuntu")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES]):
        subprocess.run(["apt-get", *command], check=True, env=environment, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def cluster(base: Path) -> Iterator[Path]:
    """Up inside, with SLURM_CONF set for this process and what it starts; every daemon is gone afterwards."""
    install()
    for name in ("state", "spool"):
        (base / name).mkdir(parents=True)
    prolog = base / "task_prolog.sh"
    prolog.write_text(PROLOG.replace("@BASE@", str(base)))
    prolog.chmod(0o755)
    configuration = base / "slurm.conf"
    configuration.write_text(_configuration(base))
    os.environ["SLURM_CONF"] = str(configuration)
    try:
        _start(base, configuration)
        yield base
    finally:
        _stop(base)
        del os.environ["SLURM_CONF"]


def _configuration(base: Path) -> str:
    text = (Path(__file__).parent / "slurm.conf").read_text()
    with contextlib.ExitStack() as held:
        # All at once, so that they differ; free again when the daemons ask for them.
        first = next(port for port in range(26000, 32000, 10) if _all_free(held, range(port, port + 5)))
    for number in range(1, 5):
        text = text.replace(f"@PORT{number}@", str(first + number))
    return text.replace("@PORT@", str(first)).replace("@BASE@", str(base))


def _all_free(held: contextlib.ExitStack, ports: range) -> bool:
    with contextlib.suppress(OSError):
        for port in ports:
            held.enter_context(socket.socket()).bind(("127.0.0.1", port))
        return True
    return False


def _start(base: Path, configuration: Path) -> None:
    key = base / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(1024))
    places = {"key-file": key, "socket": base / "munge.socket", "pid-file": base / "munged.pid",
              "log-file": base / "munged.log", "seed-file": base / "munge.seed"}  # fmt: skip
    subprocess.run(["munged", "--force", *(f"--{name}={path}" for name, path in places.items())], check=True)
    # The tests may be of an environment with few file descriptors or threads: the nodes take what this process has.
    subprocess.run(["slurmctld", "-c", "-f", str(configuration)], check=True)
    for node in NODES:
        subprocess.run(["slurmd", "-N", node, "-f", str(configuration)], check=True)
    until(lambda: ask("sinfo", "-h", "-t", "idle", "-o", "%D") == str(len(NODES)), UP_WITHIN, "four idle nodes")


def _stop(base: Path) -> None:
    subprocess.run(["scancel", "--user=root"], capture_output=True)
    with contextlib.suppress(AssertionError):  # those that do not end are killed with their node
        until(lambda: not ask("squeue", "-h"), 30, "an empty queue")
    running = [int(path.read_text()) for path in [*base.glob("slurmd.*.pid"), *base.glob("slurmctld.pid"),
                                                  *base.glob("munged.pid")]]  # fmt: skip
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)
    with contextlib.suppress(AssertionError):
        until(lambda: not any(Path(f"/proc/{process}").exists() for process in running), 20, "daemons that end")
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def ask(*command: str) -> str:
    """What one of Slurm's commands says, stripped; empty where it fails."""
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def tell(*command: str) -> str:
    """The same, but it must succeed."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def until(happened: Callable[[], object], limit: float, what: str) -> None:
    """Waits for an event, at most `limit` seconds."""
    deadline = time.monotonic() + limit
    while not happened():
        assert time.monotonic() < deadline, f"no {what} within {limit:g} s"
        time.sleep(0.2)
