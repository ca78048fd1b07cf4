"""The engine's own code, copied: what a job was sent with stays what it runs, whatever happens to the checkout."""

import shutil
from pathlib import Path

PACKAGE = "contentv"
PARTS = ("kernels", "parallel", "model", "engine", "launchers", "csrc")
"""Below the package's root; csrc for the libraries that were built."""


def package_root() -> Path:
    """The folder this very code lies in: a checkout, or an installed package."""
    return Path(__file__).resolve().parents[1]


def take(folder: Path) -> None:
    """Copies the package to `folder`/contentv, so that PYTHONPATH=`folder` runs it; `folder` must be free."""
    root = package_root()
    for part in PARTS:
        if (root / part).is_dir():
            shutil.copytree(root / part, folder / PACKAGE / part, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    shutil.copy2(root / "__init__.py", folder / PACKAGE / "__init__.py")
