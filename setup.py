"""Maps the repository root to the import package `contentv`.

The five top-level folders are namespace packages on purpose: a top-level `kernels/__init__.py` would shadow (or be
shadowed by) Hugging Face's own `kernels` package on every machine that has both.
"""

from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
FLOORS = ("kernels", "parallel", "model", "engine", "launchers")


def packages() -> list[str]:
    folders = {path.parent.relative_to(ROOT) for floor in FLOORS for path in (ROOT / floor).rglob("*.py")}
    return ["contentv"] + sorted("contentv." + ".".join(folder.parts) for folder in folders)


def version() -> str:
    scope: dict[str, str] = {}
    exec((ROOT / "__init__.py").read_text(), scope)
    return scope["__version__"]


setup(
    version=version(),
    packages=packages(),
    package_dir={"contentv": "."},
    package_data={"contentv.launchers": ["clips/*.json"]},
)
