"""The command lines of vendors' profilers: what a shell makes of them, and what the tools' own parsers do."""

import json
import os
import shlex
import shutil
import subprocess
import sys

import pytest

from contentv.engine.config import ProfileConfig
from contentv.engine.profile_tools import under_tool

ARGV = ["quickstart", "--data.folder", "my data"]
STAND_IN = f"""#!{sys.executable}
import json, os, sys
json.dump([os.path.basename(sys.argv[0]), *sys.argv[1:]], open(os.environ["SEEN"], "w"))
"""
TRAIN = [sys.executable, "-m", "contentv.launchers.train", *ARGV]
EXPECTED = {
    "nsys": ["nsys", "profile", "--trace=cuda,nvtx,osrt", "--capture-range=cudaProfilerApi", "--capture-range-end=stop",
             "--force-overwrite=true", "--output=@here@/a b/profile/steps-10-13/nsys-3", *TRAIN],
    "ncu": ["ncu", "--profile-from-start=off", "--nvtx", "--set=roofline", "--target-processes=all",
            "--force-overwrite", "--export=@here@/a b/profile/steps-10-13/ncu-3", *TRAIN,
            "--parallel.timeout-seconds", "36000"],
    "msprof": ["msprof", "--output=@here@/a b/profile/steps-10-13/msprof-3", "--msproftx=on", *TRAIN],
}  # fmt: skip


def line_of(tool, tmp_path) -> str:
    return under_tool(ProfileConfig(steps="10:13", tool=tool), str(tmp_path / "a b"), ARGV)


@pytest.mark.parametrize("tool", EXPECTED)
def test_a_shell_hands_the_tool_one_rank_of_the_run(tool, tmp_path):
    programs, seen = tmp_path / "programs", tmp_path / "seen.json"
    programs.mkdir()
    (programs / tool).write_text(STAND_IN)
    (programs / tool).chmod(0o755)
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "SEEN": str(seen), "SLURM_PROCID": "3"}
    environment.pop("RANK", None)
    subprocess.run(["bash", "-c", line_of(tool, tmp_path)], env=environment, check=True)
    assert json.loads(seen.read_text()) == [word.replace("@here@", str(tmp_path)) for word in EXPECTED[tool]]
    assert (tmp_path / "a b" / "profile" / "steps-10-13").is_dir()


@pytest.mark.parametrize("tool", ["nsys", "ncu"])
@pytest.mark.parametrize("is_known", [True, False])
def test_the_tool_itself_takes_every_option(tool, is_known, tmp_path):
    """Its parser alone: without a GPU nsys starts the program all the same, and ncu misses the driver after parsing."""
    if shutil.which(tool) is None:
        pytest.skip(f"there is no {tool} here (Debian has it in non-free: nsight-systems, nsight-compute)")
    line = line_of(tool, tmp_path)
    train = shlex.join(TRAIN)
    assert line.count(train) == 1
    line = line.replace(train, "echo started")
    if not is_known:  # so that this test would see an option that is none
        line = line.replace("--force-overwrite", "--force-overwritten")
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120)
    said = done.stdout + done.stderr
    assert ("unrecognised option" not in said) == is_known, said
    if is_known:
        assert "started" in said or "failed to connect to the CUDA driver" in said, said
        assert "invalid" not in said.lower() and "Illegal" not in said and "No metrics" not in said, said
