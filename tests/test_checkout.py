"""The code under test is this checkout, in this process and in those it starts, whatever is installed."""

import subprocess
import sys
from pathlib import Path

import contentv

ROOT = Path(__file__).resolve().parents[1]


def test_this_process_imports_the_checkout():
    assert Path(contentv.__file__).resolve() == ROOT / "__init__.py"


def test_a_child_process_imports_the_checkout(tmp_path):
    code = "import contentv.model.config as config; print(config.__file__)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert Path(child.stdout.strip()).resolve() == ROOT / "model" / "config.py", child.stderr
