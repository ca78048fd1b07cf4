"""Weights in several files with an index, as large models come; and Stable Diffusion 3.5's image weights as a start."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from contentv.model.config import ModelConfig
from contentv.model.mmdit import MMDiT
from contentv.tests.model.published_oracle import published_transformer, random_weights

CONFIG = ModelConfig(layers=2, heads=1, head_width=16, text_width=5, pooled_width=3, channels=2)
WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
PIECES = tuple(f"diffusion_pytorch_model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What diffusers itself writes for its own class: one file, the table of 2D positions included."""
    model = published_transformer(CONFIG)
    random_weights(model, 0.1, seed=4)
    folder = tmp_path_factory.mktemp("whole")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def pieces(whole, tmp_path):
    """The same as diffusers cuts it where a file would be too large."""
    tensors = load_file(whole / WEIGHTS)
    shutil.copy(whole / "config.json", tmp_path)
    places = {}
    for number, name in enumerate(sorted(tensors)):
        places.setdefault(PIECES[number % 3], {})[name] = tensors[name]
    for file, content in places.items():
        save_file(content, tmp_path / file)
    index = {"metadata": {}, "weight_map": {name: file for file, content in places.items() for name in content}}
    (tmp_path / INDEX).write_text(json.dumps(index))
    return tmp_path


def change_index(folder, change) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def test_pieces_give_the_weights_of_the_whole(whole, pieces):
    one, other = MMDiT.from_pretrained(whole).state_dict(), MMDiT.from_pretrained(pieces).state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one if one[name] is not None)


def test_an_image_model_starts_without_its_table_and_all_else_equal(whole, tmp_path):
    assert "pos_embed.pos_embed" in load_file(whole / WEIGHTS)
    MMDiT.from_pretrained(whole, "rope3d").save_pretrained(tmp_path)
    before, after = load_file(whole / WEIGHTS), load_file(tmp_path / WEIGHTS)
    del before["pos_embed.pos_embed"]
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_video_model_has_no_place_for_the_table(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "video")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_class_name": "SD3Transformer3DModel"}))
    with pytest.raises(ValueError, match="pos_embed.pos_embed has no place"):
        MMDiT.from_pretrained(folder)


def test_saving_over_pieces_leaves_one_file_that_is_read(pieces):
    model = MMDiT.from_pretrained(pieces)
    model.save_pretrained(pieces)
    assert not (pieces / INDEX).exists()
    assert torch.equal(MMDiT.from_pretrained(pieces).velocities.weight, model.velocities.weight)


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda places: places.pop("proj_out.bias"), rf"{INDEX}: tensor proj_out.bias is missing"),
        (lambda places: places.update({"proj_out.bias": PIECES[0]}), rf"{PIECES[0]}: tensor proj_out.bias is missing"),
        (lambda places: places.update({"proj_out.bias": "../x.safetensors"}), "expected .safetensors files beside it"),
        (lambda places: places.update({"proj_out.bias": "weights.bin"}), "names 'weights.bin'"),
        (lambda places: places.update({"proj_out.bias": "none.safetensors"}), "none.safetensors: no such file"),
        (lambda places: places.update({"proj_out.bias": 3}), "weight_map is dict; expected tensor names"),
    ],
    ids=["left out", "elsewhere", "outside", "pickle", "absent", "no name"],
)
def test_a_broken_index_is_told(pieces, change, told):
    change_index(pieces, change)
    with pytest.raises(ValueError, match=told):
        MMDiT.from_pretrained(pieces)
