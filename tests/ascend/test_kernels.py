"""The tests of kernels, on the simulated NPU: the npu_fused backends against the oracles of every backend."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES = ("test_joint_attention.py", "test_qk_norm_rope.py", "test_adamw.py")
OTHERS = ("gpu_triton", "gpu_cuda", "cpu_native", "reference", "torch_fused", "apex", "sdpa", "flash_attn")
SMALL = " and ".join(f"not {each}" for each in ("laptop", "contentv", *OTHERS))
"""Larger cases take seconds by arithmetic in plain torch and show nothing that the others do not."""


def test_the_fused_backends_agree_with_their_oracles(npu_environment):
    files = [f"tests/kernels/{name}" for name in FILES]
    command = [sys.executable, "-m", "pytest", *files, "-k", SMALL, "-rA"]
    environment = os.environ | npu_environment | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:]
    passed = re.findall(r"PASSED tests/kernels/(\w+)\.py::(\S+)", done.stdout)
    # Where a case is judged for all backends at once its name has none.
    assert {file for file, _ in passed} == {name.removesuffix(".py") for name in FILES}
    assert sum("npu_fused" in name for _, name in passed) > 10
