"""Maps the repository root to the import package `contentv`.

The five top-level folders are namespace packages on purpose: a top-level `kernels/__init__.py` would shadow (or be
shadowed by) Hugging Face's own `kernels` package on every machine that has both.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
FLOORS = ("kernels", "parallel", "model", "engine", "launchers")


def packages() -> list[str]:
    folders = {path.parent.relative_to(ROOT) for floor in FLOORS for path in (ROOT / floor).rglob("*.py")}
    return ["contentv"] + sorted("contentv." + ".".join(folder.parts) for folder in folders)


def version() -> str:
    scope: dict[str, str] = {}
    exec((ROOT / "__init__.py").read_text(), scope)
    return scope["__version__"]


class BuildEngine(build_py):
    """Takes the engine's own files, all of them and nothing else; tests/test_wheel.py compares with the tree."""

    def run(self):
        # setuptools never empties this folder: what was deleted since the last build would still be shipped.
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()

    def find_package_modules(self, package, package_dir):
        # The root of the checkout is the root of the package: setup.py and conftest.py lie beside its __init__.py.
        found = super().find_package_modules(package, package_dir)
        return [module for module in found if package != "contentv" or module[1] == "__init__"]


setup(
    version=version(),
    packages=packages(),
    package_dir={"contentv": "."},
    package_data={"contentv.launchers": ["clips/*.json"]},
    # Data files are those named above; by default setuptools also takes some from the source archive's list, and warns
    # that clips/ looks like a package.
    include_package_data=False,
    cmdclass={"build_py": BuildEngine},
)
