"""The environment in which kernels are lowered for Ascend: Triton-Ascend and BiShengIR's compiler, made on first use.

An environment of its own because triton-ascend takes the place of triton. It lies in the user's cache folder under a
name made of what is pinned here, so that other pins make another one. Nothing of it runs on an NPU, and nothing but
compiling needs it.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

FIRST = ("torch==2.13.0", "numpy", "pybind11", "packaging")
"""In an installation of its own: asked for together with others, pip may replace torch by another build."""
ALONE = ("triton-ascend==3.2.0", "ascendnpu-ir==1.2.0")
"""Without what they ask for, which is for machines with an NPU."""
PYTHON = (3, 11)
_READY = "ready"


def refusal() -> str | None:
    """Why it cannot be made here; None if it can."""
    if sys.version_info[:2] != PYTHON:
        return f"Python {platform.python_version()} is running; {' and '.join(ALONE)} were tried with 3.11: use that"
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"this is {platform.system()} on {platform.machine()}; BiShengIR's compiler comes for Linux on x86_64"
    return None


def folder() -> Path:
    """Where it lies, made or not."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    pins = hashlib.sha256(" ".join((*FIRST, *ALONE, platform.python_version())).encode()).hexdigest()[:12]
    return Path(cache, "contentv", f"ascend-{pins}")


def python(tell: Callable[[str], None]) -> Path:
    """The environment's interpreter; the environment is made if it is not there yet.

    Args:
        tell: is told that it is made, which takes minutes.

    Raises:
        ValueError: it cannot be made, with what pip said.
    """
    if reason := refusal():
        raise ValueError(f"kernels cannot be lowered for Ascend here: {reason}")
    place = folder()
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{place}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second process waits for the first one's environment
        if not (place / _READY).exists():
            tell(f"making {place}, once: {', '.join((*FIRST, *ALONE))}; 2 GB, a few minutes")
            shutil.rmtree(place, ignore_errors=True)
            _make(place)
            (place / _READY).touch()
    return place / "bin" / "python"


def _make(place: Path) -> None:
    _run([sys.executable, "-m", "venv", str(place)], "a virtual environment")
    install = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*install, *FIRST], " ".join(FIRST))
    _run([*install, "--no-deps", *ALONE], " ".join(ALONE))


def _run(command: list[str], what: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-500:]
        raise ValueError(
            f"{what} could not be installed: {said}. Lowering for Ascend needs these packages from PyPI or from an "
            "index that pip is configured for (pip config set global.index-url ...)"
        )


def versions(interpreter: Path) -> dict[str, str]:
    """Name -> version of what is pinned, as installed."""
    names = [pin.partition("==")[0] for pin in (*FIRST, *ALONE)]
    code = f"import importlib.metadata as m; [print(n, m.version(n)) for n in {names!r}]"
    said = subprocess.run([interpreter, "-c", code], capture_output=True, text=True, check=True).stdout
    return dict(line.split() for line in said.splitlines())
