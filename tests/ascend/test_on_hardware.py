"""The script for whoever has an NPU: what it would run is printed, and every command of ours in it is understood."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from contentv.launchers import bench, doctor
from contentv.launchers.command_line import parse_run

SCRIPT = Path(__file__).with_name("on_hardware.sh")
STAGES = ("environment", "operators", "training", "ranks", "kernels", "block", "trace")


def dry_run(tmp_path, *arguments: str) -> dict[str, list[list[str]]]:
    """Stage -> the words of each command."""
    environment = os.environ | {"OUT": str(tmp_path / "out"), "PYTHON": "python3", "RANKS": "4"}
    command = ["bash", str(SCRIPT), "--dry-run", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert not done.stderr and not list(tmp_path.iterdir()), "it only prints"
    stages: dict[str, list[list[str]]] = {}
    for line in done.stdout.splitlines():
        if line.startswith("== "):
            stages[line[3:]] = []
        else:
            stages[list(stages)[-1]].append(shlex.split(line))
    return stages


def test_every_stage_prints_its_commands(tmp_path):
    stages = dry_run(tmp_path)
    assert tuple(stages) == STAGES and all(stages.values())
    first = {stage: [words[0] for words in commands] for stage, commands in stages.items()}
    assert first["environment"].count("npu-smi") == 2 and first["trace"] == ["msprof"]
    assert stages["operators"][0][:4] == ["python3", "-m", "pytest", "tests/kernels"]
    assert list(dry_run(tmp_path, "block", "trace")) == ["block", "trace"]


def test_every_command_of_ours_is_understood(tmp_path):
    ours = [
        words[words.index("contentv.launchers.contentv") + 1 :]
        for commands in dry_run(tmp_path).values()
        for words in commands
        if "contentv.launchers.contentv" in words
    ]
    assert len(ours) > 10
    for name, *arguments in ours:
        if name == "train":
            assert parse_run(arguments, "contentv train").trainer.max_steps == 20
        elif name == "bench":
            bench.parser().parse_args(arguments)
        elif name == "doctor":
            doctor.parse(arguments)
        else:
            assert [name, *arguments] == ["data", "quickstart"]


@pytest.mark.parametrize("wrong", ["nope", "--nope"])
def test_what_it_does_not_know_is_refused(wrong):
    done = subprocess.run(["bash", str(SCRIPT), wrong], capture_output=True, text=True)
    assert done.returncode == 2 and wrong in done.stderr
