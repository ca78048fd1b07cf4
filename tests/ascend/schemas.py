"""The schemas of torch_npu's operators that the engine calls, kept in schemas.json, and as the wheels have them.

    python -m contentv.tests.ascend.schemas        writes schemas.json anew from the wheels, which pip fetches

Kept are only the lines of operators that kernels/npu_operators.py names, and of their forms that name results.
"""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
FILE = HERE / "schemas.json"
MEMBER = "torch_npu/csrc/aten/npu_native_functions_by_codegen.yaml"
VERSIONS = ("2.13.0", "2.11.0")
CALLED = (
    "npu_fusion_attention",
    "npu_fusion_attention_grad",
    "npu_rms_norm",
    "npu_rms_norm_backward",
    "npu_rotary_mul",
    "npu_apply_adam_w.out",
)
NAMING = ("npu_fusion_attention_v3.out", "npu_fusion_attention_grad_v3.out")
"""Not called: their results have names, and come in the order of those that are."""


def kept() -> dict[str, dict[str, str]]:
    """Version -> operator -> schema, as this repository has them."""
    return json.loads(FILE.read_text())["schemas"]


def of_wheel(version: str) -> dict[str, str]:
    """The same of one wheel, fetched once into the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "contentv" / "torch_npu"
    cache.mkdir(parents=True, exist_ok=True)
    if not list(cache.glob(f"torch_npu-{version}-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(cache)]
        subprocess.run([*command, f"torch_npu=={version}"], check=True)
    (wheel,) = cache.glob(f"torch_npu-{version}-*.whl")
    text = zipfile.ZipFile(wheel).read(MEMBER).decode()
    found = {}
    for line in re.findall(r"func: (npu_\S+\(.*)$", text, re.MULTILINE):
        found.setdefault(line.partition("(")[0], line)
    return {name: found[name] for name in (*CALLED, *NAMING)}


def main() -> None:
    told = {"source": f"{MEMBER} of the torch_npu wheels on PyPI", "schemas": {v: of_wheel(v) for v in VERSIONS}}
    FILE.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
