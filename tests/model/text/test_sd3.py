"""The sd3 text encoders, tiny and random, against diffusers' own StableDiffusion3Pipeline.encode_prompt."""

import json
import os
import shutil

import pytest
import torch

from contentv.model.text import load_text
from contentv.model.text.sd3 import FOLDER_VARIABLE, SD3Text
from tests.model.stand_ins import write_sd3_text

CAPTIONS = ["a dog runs", "", "Two dogs, running over a long meadow! " * 20]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd3")
    write_sd3_text(folder)
    assert (folder / "text_encoder_3" / "model.safetensors.index.json").is_file()
    return folder


@pytest.fixture(scope="module")
def encoder(folder):
    return load_text("sd3", folder=folder)


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def pipeline(folder):
    from diffusers import StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

    classes = {"": (CLIPTokenizer, CLIPTextModelWithProjection), "_2": (CLIPTokenizer, CLIPTextModelWithProjection)}
    classes["_3"] = (T5TokenizerFast, T5EncoderModel)
    parts = {}
    for number, (tokenizer, model) in classes.items():
        parts[f"tokenizer{number}"] = tokenizer.from_pretrained(folder / f"tokenizer{number}")
        parts[f"text_encoder{number}"] = model.from_pretrained(folder / f"text_encoder{number}").eval()
    return StableDiffusion3Pipeline(transformer=None, scheduler=None, vae=None, **parts)


def test_features_are_the_pipelines(encoder, pipeline):
    tokens, pooled = encoder.encode(CAPTIONS)
    assert tokens.shape == (3, 77 + 256, 40) and pooled.shape == (3, 32)
    assert (encoder.tokens, encoder.width, encoder.pooled_width) == (333, 40, 32)
    assert tokens.dtype == pooled.dtype == torch.float32
    for row, caption in enumerate(CAPTIONS):
        with torch.no_grad():
            expected = pipeline.encode_prompt(caption, None, None, device="cpu")
        # (tokens, negative tokens, pooled, negative pooled); the negative prompt is the empty one.
        assert torch.equal(tokens[row], expected[0][0]) and torch.equal(pooled[row], expected[2][0])
        assert torch.equal(tokens[1], expected[1][0]) and torch.equal(pooled[1], expected[3][0])
    assert not torch.equal(tokens[0], tokens[1]) and (tokens[:, :77, 32:] == 0).all()


def test_captions_are_really_read(encoder):
    """A tokenizer that made one unknown piece of everything would pass the comparison."""
    words = encoder.clips[0].token_ids("dog do")[0, :4].tolist()
    assert len(set(words)) == 4 and words[0] == 0
    assert encoder.t5.token_ids("dog")[0, :3].tolist() == [4, 1, 0]
    assert encoder.clips[0].token_ids("a")[0, -1] == 1 and encoder.clips[1].token_ids("a")[0, -1] == 2


def test_loading_draws_no_bars(folder, capfd):
    SD3Text.load(folder)
    assert capfd.readouterr() == ("", "")


def test_the_empty_caption_is_computed_once(folder, monkeypatch):
    encoder = SD3Text.load(folder)
    first = encoder.encode([""])
    monkeypatch.setattr(encoder, "_compute", lambda caption: pytest.fail(f"{caption!r} was encoded again"))
    again = encoder.encode(["", ""])
    assert torch.equal(again[0][1], first[0][0]) and torch.equal(again[1][1], first[1][0])
    assert encoder.encode([])[0].shape == (0, 333, 40)


def test_tokens_are_t5s_to_choose(folder, encoder):
    shorter = load_text("sd3", tokens=77 + 9, folder=folder)
    assert shorter.tokens == 86 and shorter.identity != encoder.identity
    assert torch.equal(shorter.encode(["a dog"])[1], encoder.encode(["a dog"])[1])
    assert shorter.encode(["a dog"])[0].shape == (1, 86, 40)
    with pytest.raises(ValueError, match="77 of them"):
        load_text("sd3", tokens=77, folder=folder)


def test_folder_from_the_environment(folder, encoder, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    assert load_text("sd3", tokens=333).identity == encoder.identity
    monkeypatch.delenv(FOLDER_VARIABLE)
    with pytest.raises(ValueError, match=FOLDER_VARIABLE):
        load_text("sd3")
    with pytest.raises(ValueError, match="brings its own weights"):
        load_text("minilm", folder=folder)


def test_identity_covers_weights_vocabulary_and_settings(encoder, copy):
    assert SD3Text.load(copy).identity == encoder.identity
    (copy / "text_encoder" / "model.fp16.safetensors").write_bytes(b"another precision, not read")
    assert SD3Text.load(copy).identity == encoder.identity
    vocabulary = copy / "tokenizer_3" / "tokenizer.json"
    vocabulary.write_text(vocabulary.read_text() + "\n")
    changed = SD3Text.load(copy).identity
    assert changed != encoder.identity
    shard = sorted((copy / "text_encoder_3").glob("model-*.safetensors"))[-1]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert SD3Text.load(copy).identity not in (changed, encoder.identity)


def change_config(folder, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def cut_short(path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def to_pipe(path) -> None:
    """Opened as any file, it waits for ever: nobody writes to it."""
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda copy: shutil.rmtree(copy / "tokenizer_2"), "has no tokenizer_2"),
        (lambda copy: (copy / "text_encoder_2" / "model.safetensors").unlink(), "text_encoder_2: not readable"),
        (lambda copy: cut_short(copy / "text_encoder" / "model.safetensors"), "text_encoder: not readable"),
        (lambda copy: cut_short(copy / "tokenizer_3" / "tokenizer.json"), "tokenizer_3: not readable"),
        (lambda copy: (copy / "tokenizer_3" / "tokenizer.json").unlink(), "tokenizer_3: not readable.*no vocabulary"),
        (lambda copy: change_config(copy / "text_encoder", num_hidden_layers=4), "differ in 16 tensors"),
        (lambda copy: change_config(copy / "text_encoder_3", num_layers=1), "differ in 9 tensors"),
        (lambda copy: change_config(copy / "text_encoder_3", architectures=["CLIP"]), "expected .'T5EncoderModel'"),
        (lambda copy: (copy / "text_encoder" / "config.json").write_text("{"), "config.json: not readable"),
        (lambda copy: (copy / "text_encoder" / "config.json").write_text("[" * 99_999), "nested too deeply"),
        (lambda copy: (copy / "tokenizer_2" / "tokenizer_config.json").unlink(), "tokenizer_2.*no tokenizer_config"),
        (lambda copy: (copy / "tokenizer_3" / "tokenizer.json").write_text('{"version" "1.0"}'), "tokenizer_3: not"),
        (lambda copy: to_pipe(copy / "text_encoder_3" / "model-00002-of-00006.safetensors"), "it is a pipe"),
        (lambda copy: to_pipe(copy / "text_encoder" / "config.json"), "it is a pipe"),
    ],
)
def test_broken_folders_are_refused_by_name(copy, damage, message):
    damage(copy)
    with pytest.raises(ValueError, match=message):
        SD3Text.load(copy)
