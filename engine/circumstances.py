"""What a measurement must carry so that somebody else can repeat it."""

import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ..kernels.device import name_of, toolkits

ROOT = Path(__file__).resolve().parents[1]
COMMIT_VARIABLE = "CONTENTV_COMMIT"
"""Names the commit where the tree was copied without its history, to a machine with an accelerator for example."""
PACKAGES = ("torch", "triton", "megatron-core", "flash-attn", "transformer-engine", "apex", "torch_npu")


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """Hardware, versions, commit and command of one measurement."""

    device: str
    host: str
    threads: int
    load: float
    """Processes ready to run in the last minute: above the number of cores, absolute times mean nothing."""
    versions: dict[str, str]
    commit: str | None
    """None outside a git checkout; with `-dirty` where files differ from it."""
    command: str
    date: str


def circumstances(device: torch.device) -> Circumstances:
    """Those of this process, now."""
    return Circumstances(
        device=name_of(device),
        host=f"{_processor()}, {os.cpu_count()} cores, {platform.machine()}",
        threads=torch.get_num_threads(),
        load=round(os.getloadavg()[0], 2),
        versions=_versions(),
        commit=_commit(),
        command=" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        date=datetime.now(UTC).date().isoformat(),
    )


def _processor() -> str:
    try:
        return re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):
        return platform.processor() or "unknown processor"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), **toolkits()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    if named := os.environ.get(COMMIT_VARIABLE):
        return named
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(asked, capture_output=True, check=True, text=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None
