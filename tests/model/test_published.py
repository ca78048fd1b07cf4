"""Published folders: what is not exactly the model that config.json describes is told and refused; round trips keep
every bit, and diffusers finds its own layout in what we write."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from contentv.launchers.contentv import main
from contentv.model.config import ModelConfig
from contentv.model.mmdit import MMDiT
from contentv.tests.model.published_oracle import (
    GoldenCase,
    make_golden,
    published_transformer,
    random_weights,
    write_published,
)

CONFIG = ModelConfig(layers=2, heads=1, head_width=16, text_width=5, pooled_width=3, channels=2)
WEIGHTS = "diffusion_pytorch_model.safetensors"
GAIN = "transformer_blocks.1.attn.norm_k.weight"


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    case = GoldenCase(config=CONFIG, batch=1, grid=(1, 2, 2), text=1, std=0.1)
    return make_golden(case, tmp_path_factory.mktemp("published"))


@pytest.fixture
def folder(golden, tmp_path):
    """A good folder, for this test to break."""
    return shutil.copytree(golden.folder, tmp_path / "transformer")


def refusal(folder, golden, capsys, *options: str) -> str:
    """The message of a parity check that must end with status 2, and the same message from Python."""
    assert main(["convert", "parity", str(folder), str(golden.file), *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and "Traceback" not in printed.err
    with pytest.raises(ValueError) as caught:
        MMDiT.from_pretrained(folder, *options[1:])
    assert printed.err == f"error: {caught.value}\n"
    return printed.err


def change_weights(folder, change) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def change_config(folder, **changed) -> None:
    """None removes a key."""
    values = json.loads((folder / "config.json").read_text()) | changed
    values = {key: value for key, value in values.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda tensors: tensors.pop(GAIN), [GAIN, "missing", "[16]"]),
        (lambda tensors: tensors.update(extra=torch.ones(1)), ["tensor extra", "no place"]),
        (
            lambda tensors: tensors.update({name: torch.ones(1) for name in ("a", "b", "c")}),
            ["tensor a ", "nor have 2 others"],
        ),
        (lambda tensors: tensors.update({GAIN: torch.ones(1, 16)}), [GAIN, "[1, 16]", "expected [16]"]),
        (lambda tensors: tensors.update({GAIN: torch.ones(15)}), [GAIN, "[15]", "expected [16]"]),
        (lambda tensors: tensors.update({GAIN: torch.ones(16).int()}), [GAIN, "is I32", "expected a floating-point"]),
    ],
    ids=["missing", "surplus", "more surplus", "one axis too many", "too short", "integers"],
)
def test_a_wrong_tensor_is_told(folder, golden, capsys, change, told):
    change_weights(folder, change)
    message = refusal(folder, golden, capsys)
    assert all(part in message for part in [str(folder / WEIGHTS), *told]), message


@pytest.mark.parametrize("kept", [0, 4, 500, -1])
def test_a_truncated_file_is_told(folder, golden, capsys, kept):
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:kept])
    assert f"{folder / WEIGHTS}: truncated or not a safetensors file" in refusal(folder, golden, capsys)


def test_missing_files_are_told(folder, golden, capsys):
    (folder / WEIGHTS).unlink()
    assert f"{folder / WEIGHTS}: no such file" in refusal(folder, golden, capsys)
    (folder / "config.json").unlink()
    assert f"{folder / 'config.json'}: no such file" in refusal(folder, golden, capsys)
    assert f"{folder / 'nowhere'}" in refusal(folder / "nowhere", golden, capsys)


def test_a_folder_in_a_files_place_is_told(folder, golden, capsys):
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()
    assert str(folder / WEIGHTS) in refusal(folder, golden, capsys)


@pytest.mark.parametrize(
    "changed, told",
    [
        ({"_class_name": "FluxTransformer2DModel"}, "_class_name is 'FluxTransformer2DModel'; expected SD3Transf"),
        ({"_class_name": None}, "_class_name is None; expected SD3Transf"),
        ({"num_layers": None}, "num_layers is None; expected a whole number"),
        ({"num_attention_heads": "1"}, "num_attention_heads is '1'; expected a whole number"),
        ({"attention_head_dim": 16.0}, "attention_head_dim is 16.0; expected a whole number"),
        ({"num_layers": True}, "num_layers is True; expected a whole number"),
        ({"in_channels": 0}, "in_channels is 0; expected a whole number"),
        ({"joint_attention_dim": [5]}, "joint_attention_dim is [5]; expected a whole number"),
        ({"pooled_projection_dim": -3}, "pooled_projection_dim is -3; expected a whole number"),
        ({"patch_size": 4}, "patch_size is 4; expected 2"),
        ({"qk_norm": "layer_norm"}, "qk_norm is 'layer_norm'; expected 'rms_norm'"),
        ({"dual_attention_layers": [0, 1]}, "dual_attention_layers is [0, 1]; expected []"),
        ({"caption_projection_dim": 17}, "caption_projection_dim is 17; expected 16"),
        ({"out_channels": 3}, "out_channels is 3; expected 2"),
        ({"attention_head_dim": 24, "caption_projection_dim": 24}, "multiple of 16"),
        ({"position": "learned"}, "position is 'learned'; expected sincos3d or rope3d"),
        ({"position": 3}, "position is 3; expected sincos3d or rope3d"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_config_is_told(folder, golden, capsys, changed, told):
    change_config(folder, **changed)
    message = refusal(folder, golden, capsys)
    assert message.startswith(f"error: {folder / 'config.json'}: ") and told in message, message


@pytest.mark.parametrize("text", ["", "{", "[]", "3", b"\xff\xfe{}"])
def test_a_config_that_is_no_json_object_is_told(folder, golden, capsys, text):
    (folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    message = refusal(folder, golden, capsys)
    assert message.startswith(f"error: {folder / 'config.json'}: ") and "JSON" in message


def test_a_config_of_another_size_is_told_by_its_first_tensor(folder, golden, capsys):
    change_config(folder, num_attention_heads=2, caption_projection_dim=32)
    message = refusal(folder, golden, capsys)
    assert "pos_embed.proj.weight has shape [16, 2, 2, 2]; expected [32, 2, 2, 2]" in message


def test_the_position_argument_only_fills_an_absent_one(folder, golden, capsys):
    assert MMDiT.from_pretrained(folder).config.position == "sincos3d"
    assert MMDiT.from_pretrained(folder, "rope3d").config.position == "rope3d"
    for written, asked in (("sincos3d", "rope3d"), ("rope3d", "sincos3d")):
        change_config(folder, position=written)
        assert MMDiT.from_pretrained(folder).config.position == written
        assert MMDiT.from_pretrained(folder, position=written).config.position == written
        message = refusal(folder, golden, capsys, "--position", asked)
        assert f"position is {written}, but {asked} was asked for" in message


def test_a_pipeline_folder_is_read_by_its_transformer(folder):
    found, expected = (dict(MMDiT.from_pretrained(each).named_parameters()) for each in (folder.parent, folder))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("position", ["sincos3d", "rope3d"])
def test_a_round_trip_keeps_every_bit(folder, tmp_path, position):
    model = MMDiT.from_pretrained(folder, position)
    model.save_pretrained(tmp_path / "saved")
    before, after = load_file(folder / WEIGHTS), load_file(tmp_path / "saved" / WEIGHTS)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and torch.equal(tensor, after[name]), name
    assert json.loads((tmp_path / "saved/config.json").read_text())["position"] == position
    again = MMDiT.from_pretrained(tmp_path / "saved")
    assert again.config == model.config
    for (name, one), (_, other) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    # Exactly what was asked for is left: no half-written file beside it.
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["config.json", WEIGHTS]


def test_saving_over_a_folder_replaces_it(folder, tmp_path):
    MMDiT.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    change_weights(folder, lambda tensors: tensors[GAIN].add_(1))
    MMDiT.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    assert torch.equal(load_file(tmp_path / "saved" / WEIGHTS)[GAIN], load_file(folder / WEIGHTS)[GAIN])


def test_diffusers_finds_its_layout_in_what_is_saved(tmp_path):
    config = ModelConfig(layers=3, heads=2, head_width=32, text_width=24, pooled_width=9, channels=4)
    theirs = published_transformer(config)
    random_weights(theirs, 0.1, seed=8)
    write_published(theirs, tmp_path / "theirs")
    MMDiT.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    values = json.loads((tmp_path / "ours/config.json").read_text())
    known = {key: value for key, value in values.items() if key not in ("_class_name", "position")}
    loaded = type(theirs)(**known)
    found = loaded.load_state_dict(load_file(tmp_path / "ours" / WEIGHTS), strict=False)
    # diffusers' own 2D table, which the published video model does not use.
    assert (found.missing_keys, found.unexpected_keys) == (["pos_embed.pos_embed"], [])
    for (name, one), (_, other) in zip(theirs.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.equal(one, other), name
