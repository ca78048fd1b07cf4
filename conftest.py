"""Makes this checkout the package `contentv` for every test, and for every process a test starts.

The root folder may have any name, and the environment may hold no installation, or another checkout: this one wins.
"""

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent


def register_checkout() -> None:
    specification = importlib.util.spec_from_file_location(
        "contentv", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(specification)
    sys.modules["contentv"] = module
    specification.loader.exec_module(module)


def pytest_configure(config):
    # Child processes find the checkout under its import name through a link on their path.
    link = tempfile.TemporaryDirectory(prefix="contentv-import-")
    config.add_cleanup(link.cleanup)
    Path(link.name, "contentv").symlink_to(ROOT, target_is_directory=True)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (link.name, os.environ.get("PYTHONPATH"))))


register_checkout()
