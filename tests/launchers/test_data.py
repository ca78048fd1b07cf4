"""`contentv data`: makes what is missing, reuses what is there, and says which."""

import json

import pytest
import torch

from contentv.engine.video import write_mp4
from contentv.launchers import data


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe of one clip that is already in its folder, so that nothing is fetched."""
    import hashlib

    pixels = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 6, 8) * 2 - 1, (30, 48, 64), mode="trilinear")[0]
    video = tmp_path / "made" / "clips" / "waves.mp4"
    write_mp4(video, pixels, fps=8)
    sha256 = hashlib.sha256(video.read_bytes()).hexdigest()
    content = {
        "frames": 5,
        "height": 24,
        "width": 32,
        "packages": [
            {
                "name": "nowhere",
                "version": "1",
                "archive": "nowhere.whl",
                "bytes": 1,
                "sha256": "0",
                "files": [{"name": "waves.mp4", "inner": "waves.mp4", "sha256": sha256}],
            }
        ],
        "clips": [
            {
                "name": "waves",
                "caption": "slow waves",
                "file": "waves.mp4",
                "stride": 1,
                "train": {"first": 0, "stop": 20, "windows": 4},
                "held_out": {"first": 20, "stop": 30, "windows": 1},
            }
        ],
    }
    (tmp_path / "waves.json").write_text(json.dumps(content))
    monkeypatch.setattr(data, "CLIP_MANIFESTS", tmp_path)
    return ["waves", "--folder", str(tmp_path / "made"), "--json"]


def test_the_second_run_reuses_the_first(recipe, capsys):
    assert data.main(recipe) == 0
    first = capsys.readouterr()
    summary = json.loads(first.out)
    assert summary["samples"] == {"held_out": {"5x24x32": 1}, "train": {"5x24x32": 4}}
    assert not summary["reused"] and "(encoded)" in first.err and "encoding" in first.err
    assert data.main(recipe) == 0
    second = capsys.readouterr()
    assert json.loads(second.out) == summary | {"reused": True}
    assert second.err.count("reused") == 2


def test_an_unknown_recipe_is_one_line(capsys):
    assert data.main(["quikstart"]) == 2
    assert "recipe 'quikstart' has no clips; recipes with clips: quickstart" in capsys.readouterr().err
