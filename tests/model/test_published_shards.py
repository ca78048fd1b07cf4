"""Weights in several files with an index, as large models come, and Stable Diffusion 3.5's image weights as a start."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file, save_file

from contentv.model import published
from contentv.model.config import ModelConfig
from contentv.model.cost import parameter_shapes
from contentv.model.mmdit import MMDiT
from contentv.parallel.layers import Piece
from contentv.tests.model.published_oracle import published_transformer, random_weights
from contentv.tests.parallel.layouts import join

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


@pytest.mark.parametrize("layout", [{}, {"tensor": 2}], ids=["data", "tensor"])
def test_the_ranks_of_a_world_hold_the_whole_together(rank_server, tmp_path, layout):
    """Three heads over two tensor ranks: two and one. Data-parallel ranks each hold everything."""
    random_weights(model := published_transformer(replace(CONFIG, heads=3)), 0.1, seed=4)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    alone = {name: value.detach() for name, value in MMDiT.from_pretrained(tmp_path).named_parameters()}
    read = {"folder": str(tmp_path), "results": str(tmp_path), "layout": layout}
    rank_server.run(2, "contentv.tests.parallel.programs:read_published", **read)
    held = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    wholes, (apart, _) = join(held)
    assert apart == 0.0 and wholes.keys() == alone.keys()
    assert all(torch.equal(wholes[name], alone[name]) for name in alone)
    heads = [rank["blocks.0.video.qkv.weight"][1:3] for rank in held]
    assert heads == ([(0, 2), (2, 3)] if layout else [(0, 3), (0, 3)])


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


def test_pieces_of_tensors_are_read_as_the_whole_has_them(pieces):
    whole = {name: tensor for file in PIECES for name, tensor in load_file(pieces / file).items()}
    source = published.open_folder(pieces).tensor
    for name, shape in parameter_shapes(CONFIG).items():
        for dim in (dim for dim in range(min(len(shape), 2)) if shape[dim] % 2 == 0):
            piece = Piece(dim=dim, begin=1, end=2, count=2)
            assert torch.equal(source(name, piece), whole[name][piece.bounds(shape)]), name


def test_a_piece_is_all_that_reaches_memory(tmp_path):
    """As a rank of several reads: a quarter of one large tensor's rows."""
    config = replace(CONFIG, text_width=2**21)
    shapes = parameter_shapes(config)
    published.write_tensors(tmp_path, ((name, torch.ones(shape)) for name, shape in shapes.items()), config)
    source, size = published.open_folder(tmp_path).tensor, 4 * 16 * 2**21
    before = resident()
    rows = source("context_embedder.weight", Piece(dim=0, begin=2, end=3, count=4))
    assert rows.sum() == 4 * 2**21
    assert 0.25 * size < resident() - before + 2**20 and resident() - before < 0.4 * size


def resident() -> int:
    """Bytes of this process that are in memory now, those of mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_it_is(whole, tmp_path, dtype):
    shutil.copy(whole / "config.json", tmp_path)
    halves = {name: tensor.to(dtype) for name, tensor in load_file(whole / WEIGHTS).items()}
    save_file(halves, tmp_path / WEIGHTS)
    MMDiT.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / WEIGHTS)
    assert all(torch.equal(tensor, halves[name].float()) for name, tensor in again.items())


def test_a_large_model_is_written_in_pieces_that_diffusers_reads(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(published, "FILE_VALUES", 5000)
    model = MMDiT.from_pretrained(whole)
    model.save_pretrained(tmp_path)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    count = len(files)
    assert files == [f"diffusion_pytorch_model-{number + 1:05d}-of-{count:05d}.safetensors" for number in range(count)]
    contents = [load_file(tmp_path / file) for file in files]
    assert count > 2 and all(sum(map(torch.numel, content.values())) <= 5000 for content in contents)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for content in contents for tensor in content.values())
    theirs = SD3Transformer2DModel.from_pretrained(tmp_path, low_cpu_mem_usage=False).state_dict()
    before = load_file(whole / WEIGHTS)
    assert all(torch.equal(theirs[name], before[name]) for name in parameter_shapes(CONFIG))
    ours = MMDiT.from_pretrained(tmp_path)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), ours.parameters(), strict=True))


def test_a_smaller_save_leaves_no_piece_of_a_larger_one(whole, tmp_path, monkeypatch):
    model = MMDiT.from_pretrained(whole)
    for values in (5000, 8000, 2**30, 5000):
        monkeypatch.setattr(published, "FILE_VALUES", values)
        model.save_pretrained(tmp_path)
        found = {path.name for path in tmp_path.glob("*.safetensors")}
        assert found == {path.name for path in published.open_folder(tmp_path).files}


def test_what_is_written_may_be_read_by_whoever_the_umask_lets(whole, tmp_path):
    model, before = MMDiT.from_pretrained(whole), os.umask(0o027)
    try:
        model.save_pretrained(tmp_path / "shared")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "shared").iterdir()} == {0o640}


def test_saving_over_pieces_leaves_one_file_that_is_read(pieces):
    model = MMDiT.from_pretrained(pieces)
    model.save_pretrained(pieces)
    assert sorted(path.name for path in pieces.iterdir()) == ["config.json", WEIGHTS]
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
