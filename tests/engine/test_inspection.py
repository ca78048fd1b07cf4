"""What `contentv inspect` says of each kind of folder."""

import json
import shutil

import pytest
import torch
from PIL import Image

from contentv.engine import inspection
from contentv.kernels.registry import choose
from contentv.launchers.contentv import main
from contentv.model.config import ModelConfig
from contentv.model.cost import count_parameters, parameter_shapes
from contentv.model.mmdit import MMDiT
from contentv.tests.model.published_oracle import published_transformer, random_weights
from tests.engine.real_run import CAPTIONS

SMALL = ModelConfig(layers=1, heads=1, head_width=16, text_width=4, pooled_width=3, channels=2)


def told(capsys, *arguments):
    assert main(["inspect", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_latent_shards_and_their_sheet(real_run, tmp_path, capsys):
    from contentv.engine import config_yaml

    folder = config_yaml.load(real_run / "config.yaml").data.folder
    facts = told(capsys, folder, "--sheet", tmp_path / "sheet.png")
    assert facts["kind"] == "latent shards" and facts["codec"]["kind"] == "pca" and facts["text"]["kind"] == "minilm"
    counts = facts["splits"]["train"]
    assert sum(counts["samples"].values()) == sum(counts["most_frequent"].values()) > 0
    assert counts["latents"] == {"5x32x48": [16, 2, 4, 6]} and counts["captions"] == len(CAPTIONS)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height > 32 * len(CAPTIONS)


def test_of_many_captions_the_most_frequent_are_told_and_drawn(real_run, tmp_path, capsys, monkeypatch):
    from contentv.engine import config_yaml

    folder = config_yaml.load(real_run / "config.yaml").data.folder
    heights = []
    for limit in (3, 1):
        monkeypatch.setattr(inspection, "CAPTIONS", limit)
        facts = told(capsys, folder, "--sheet", tmp_path / "sheet.png")["splits"]["train"]
        assert facts["captions"] == len(CAPTIONS) and len(facts["most_frequent"]) == limit
        with Image.open(tmp_path / "sheet.png") as sheet:
            heights.append(sheet.height)
    assert heights[0] == 3 * heights[1]


def test_a_run_and_its_checkpoint(real_run, capsys):
    run = told(capsys, real_run)
    assert run["kind"] == "run" and run["checkpoints"][-1] == run["last"]["step"]
    step = run["checkpoints"][-1]
    assert told(capsys, real_run / "checkpoints" / f"step-{step:08d}") == run["last"]
    assert run["last"]["model"]["parameters"] > 0 and run["last"]["kernels"] == choose("cpu").choices()


def test_published_weights(tmp_path, capsys):
    model = published_transformer(SMALL)
    random_weights(model, 0.1, seed=1)
    model.save_pretrained(tmp_path / "published")
    facts = told(capsys, tmp_path / "published")
    assert facts["kind"] == "published weights" and facts["model"]["parameters"] == count_parameters(SMALL)
    assert facts["model"]["position"] is None, "its config.json names none"
    assert facts["tensors"] == {"float32": len(parameter_shapes(SMALL))}
    assert facts["files"] == ["diffusion_pytorch_model.safetensors"] and facts["mib"] > 0
    MMDiT.from_pretrained(tmp_path / "published", "rope3d").save_pretrained(tmp_path / "ours")
    assert told(capsys, tmp_path / "ours")["model"]["position"] == "rope3d"


def test_the_identity_of_weights_is_that_of_their_values(tmp_path, capsys):
    model = published_transformer(SMALL)
    random_weights(model, 0.1, seed=1)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "pieces", max_shard_size="10KB")
    whole, pieces = (told(capsys, tmp_path / name) for name in ("whole", "pieces"))
    assert len(pieces["files"]) > 1 and pieces["identity"] == whole["identity"] and len(whole["identity"]) == 64
    with torch.no_grad():
        model.proj_out.bias[0] += 1
    model.save_pretrained(tmp_path / "changed")
    model.bfloat16().save_pretrained(tmp_path / "half")
    changed, half = (told(capsys, tmp_path / name) for name in ("changed", "half"))
    assert len({facts["identity"] for facts in (whole, changed, half)}) == 3
    assert half["tensors"] == {"bfloat16": len(parameter_shapes(SMALL))}


def test_without_json_it_is_for_people(tmp_path, capsys):
    published_transformer(SMALL).save_pretrained(tmp_path)
    assert main(["inspect", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("kind: published weights\n")


@pytest.mark.parametrize("what", ["nothing", "missing", "sheet of a run", "damaged"])
def test_what_can_not_be_inspected_is_refused(real_run, tmp_path, capsys, what):
    folder = tmp_path / "folder"
    if what == "nothing":
        folder.mkdir()
    if what == "damaged":
        shutil.copytree(real_run, folder)
        last = sorted((folder / "checkpoints").iterdir())[-1]
        (last / "tensors" / "common.pt").unlink()
    source, more = (real_run, ["--sheet", str(tmp_path / "x.png")]) if what == "sheet of a run" else (folder, [])
    assert main(["inspect", str(source), *more]) == 2
    message = capsys.readouterr().err
    expected = {
        "nothing": "holds no manifest.json",
        "missing": "is no folder",
        "sheet of a run": "holds a run",
        "damaged": "common.pt: found no file",
    }
    assert expected[what] in message and not (tmp_path / "x.png").exists()
