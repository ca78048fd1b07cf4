"""Every command, given something wrong: status 2, one paragraph on stderr that helps, and nothing left behind."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from contentv.engine.checkpoints import CheckpointFolder
from contentv.engine.sampling import find_checkpoint, open_run
from contentv.launchers import bench, convert, data, evaluate, quickstart, sample, train
from tests.engine.real_run import STEPS
from tests.engine.sealed import replace_recorded
from tests.engine.small_run import write_shards

COMMANDS = {"train": train, "sample": sample, "evaluate": evaluate, "convert": convert, "data": data,
            "quickstart": quickstart, "bench": bench}  # fmt: skip
PROMPT = ("--prompt", "red waves")


@pytest.fixture
def refusal(capfd, tmp_path, monkeypatch):
    """Runs a command in an empty folder that must refuse; the paragraph it prints. No file anywhere may change."""
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        before = state(tmp_path)
        try:
            status = COMMANDS[name].main([str(argument) for argument in arguments])
        except SystemExit as exit:
            status = exit.code
        printed = capfd.readouterr()
        assert status == 2, printed.err
        assert printed.out == "" and "Traceback" not in printed.err
        message = printed.err[printed.err.rindex("error: ") :] if "error: " in printed.err else printed.err
        assert "\n\n" not in message.strip(), "more than one paragraph"
        assert state(tmp_path) == before, "something was left behind"
        return " ".join(message.split())

    return run


def state(folder):
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()} | {
        path: None for path in folder.rglob("*") if path.is_dir()
    }


@pytest.fixture
def run_copy(real_run, tmp_path):
    """A run of its own to break."""
    return Path(shutil.copytree(real_run, tmp_path / "run"))


@pytest.fixture(scope="module")
def published(real_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    open_run(find_checkpoint(real_run), "raw").model.save_pretrained(folder)
    return folder


@pytest.fixture
def shards(tmp_path):
    return write_shards(tmp_path / "shards")


def training(shards, *options, folder="made"):
    small = ("--model.layers", 2, "--model.heads", 2, "--model.head-width", 16, "--model.text-width", 24)
    small += ("--model.pooled-width", 24, "--trainer.max-steps", 2, "--trainer.threads", 1)
    return ("quickstart", *small, "--data.folder", shards, "--run.folder", folder, *options)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option(refusal, name):
    needed = {"train": ["quickstart"], "sample": ["run", *PROMPT, "--out", "x.mp4"], "evaluate": ["run"]}
    needed |= {"convert": ["parity", "folder", "golden"], "data": ["quickstart"], "bench": ["step"]}
    assert "--surprise" in refusal(name, *needed.get(name, []), "--surprise", "1")


def test_a_place_that_cannot_be_written_to(refusal, shards, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for place in ("file", "file/below/it"):
        assert f"run.folder is {place}, but file is not a folder" in refusal("train", *training(shards, folder=place))
        message = refusal("data", "quickstart", "--folder", place)
        assert f"--folder is {place}, but file is not a folder: remove it, or choose another place" in message
    (tmp_path / "runs").write_text("in the way")
    assert "run.folder is runs/quickstart, but runs is not a folder" in refusal("quickstart")


def test_training_data_that_are_missing_or_broken(refusal, shards, tmp_path):
    assert "nowhere/manifest.json" in refusal("train", *training("nowhere"))
    (tmp_path / "empty").mkdir()
    assert "`contentv data` or `contentv encode`" in refusal("train", *training("empty"))
    assert "set --model.text-width 24" in refusal("train", *training(shards, "--model.text-width", 25))
    assert "set --model.pooled-width 24" in refusal("train", *training(shards, "--model.pooled-width", 25))

    (held_out,) = shards.glob("held_out-*.tar")
    damages = {
        "codec/codec.safetensors": "codec.safetensors: not readable",
        "codec/codec.json": "holds no readable codec",
        "empty_caption.safetensors": "sha256",
        "train-5x32x48-00001.tar": "expected",
        held_out.name: "expected",
        "manifest.json": "expected a complete manifest",
    }
    for name, words in damages.items():
        path = shards / name
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        message = refusal("train", *training(shards))
        assert words in message and Path(name).parts[0] in message
        path.unlink()
        assert Path(name).parts[0] in refusal("train", *training(shards))
        path.write_bytes(content)
    assert not (tmp_path / "made").exists()


def test_a_sample_that_went_bad_on_the_disk_ends_the_run_with_its_name(capfd, shards, tmp_path):
    for path in shards.glob("train-*.tar"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    options = training(shards, "--trainer.max-steps", 9, folder=tmp_path / "made")
    assert train.main([str(option) for option in options]) == 2
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err and "crc32" in printed.err and "restore the file or encode" in printed.err
    assert not CheckpointFolder(tmp_path / "made").steps()


def test_a_resume_from_a_broken_checkpoint(refusal, run_copy):
    resume = (run_copy / "config.yaml", "--run.folder", run_copy, "--trainer.max-steps", STEPS + 1)
    last = CheckpointFolder(run_copy).path(STEPS)
    tensors = max((last / "tensors").iterdir(), key=lambda path: path.stat().st_size)
    for path in (last / "checkpoint.json", last / "config.yaml", last / "codec" / "codec.json", tensors):
        content = path.read_bytes()
        path.write_bytes(content[:-20])
        message = refusal("train", *resume)
        assert str(path) in message and "remove the checkpoint's folder to go on from the one before it" in message
        path.write_bytes(content)
    (run_copy / "config.yaml").write_text("recipe: [")
    assert "is not plain YAML" in refusal("train", *resume)


def test_sampling_options(refusal, real_run, tmp_path):
    def message(*options, out="x.mp4"):
        return refusal("sample", real_run, *PROMPT, "--out", out, *options)

    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder.mp4").mkdir()
    assert "--out is x.avi; the file must end in .mp4" in message(out="x.avi")
    assert "--out is folder.mp4, which is a folder" in message(out="folder.mp4")
    assert "--out is file/x.mp4" not in message(out="file/x.mp4") and "file is not a folder" in message(
        out="file/x.mp4"
    )
    assert "sample.steps is 0; it must be" in message("--steps", 0)
    assert "sample.guidance is nan; it must be" in message("--guidance", "nan")
    assert "sample.fps is 0.0; it must be" in message("--fps", 0)
    assert "sample.seed is -1; it must be" in message("--seed", -1)
    assert "invalid choice: 'best' (choose from 'ema', 'raw')" in message("--weights", "best")
    for option, *values in (("--codec", "x"), ("--text", "minilm"), ("--position", "rope3d"), ("--size", 5, 32, 48)):
        assert f"{option} is for published weights" in message(option, *values)


def test_what_holds_nothing_to_sample_or_evaluate(refusal, tmp_path):
    (tmp_path / "empty").mkdir()
    out = (*PROMPT, "--out", "x.mp4")
    assert "nowhere is no folder; give a run, one of its checkpoints, or" in refusal("sample", "nowhere", *out)
    assert "empty holds neither checkpoints nor a config.json; give a run" in refusal("sample", "empty", *out)
    assert "nowhere is no folder; give a run" in refusal("evaluate", "nowhere")
    assert "empty holds no checkpoint; train first" in refusal("evaluate", "empty")


def test_a_broken_run(refusal, run_copy):
    last = CheckpointFolder(run_copy).path(STEPS)
    commands = ("sample", run_copy, *PROMPT, "--out", "x.mp4"), ("evaluate", run_copy)
    for name in ("checkpoint.json", "config.yaml", "codec/codec.safetensors", "codec/codec.json"):
        content = (last / name).read_bytes()
        (last / name).write_bytes(content[:-20])
        assert all(str(last / name) in refusal(*command) for command in commands)
        (last / name).unlink()
        assert all(str(last / name) in refusal(*command) for command in commands)
        (last / name).write_bytes(content)
    (run_copy / "summary.json").write_text("{")
    assert f"{run_copy}/summary.json is no JSON object" in refusal("evaluate", run_copy)


def test_evaluating_without_its_data_or_clips(refusal, run_copy, tmp_path):
    shards = tmp_path / "moved"
    checkpoint = CheckpointFolder(run_copy).path(STEPS)
    text = (checkpoint / "config.yaml").read_text()
    (folder,) = (line.split(": ")[1] for line in text.splitlines() if line.endswith("/shards"))
    replace_recorded(checkpoint, "config.yaml", text.replace(folder, f"{folder[:-6]}absent").encode())
    assert f"{folder[:-6]}absent/manifest.json" in refusal("evaluate", run_copy)
    replace_recorded(checkpoint, "config.yaml", text.encode())
    assert not shards.exists()
    assert "clips is no folder" in refusal("evaluate", run_copy, "--pictures")


def test_published_weights(refusal, published, real_run, tmp_path):
    codec = CheckpointFolder(real_run).path(STEPS) / "codec"

    def message(*options, folder=published):
        return refusal("sample", folder, *PROMPT, "--out", "x.mp4", *options)

    given = ("--codec", codec, "--text", "minilm")
    assert "give --codec FOLDER and --text KIND" in message()
    assert "give --codec FOLDER and --text KIND" in message("--codec", codec)
    assert "text encoder 't5' is not known; known are minilm" in message("--codec", codec, "--text", "t5")
    assert "--weights chooses between a run's weights" in message(*given, "--weights", "raw")
    assert "frames" in message(*given, "--size", 4, 32, 48)
    assert "multiples of 16" in message(*given, "--size", 5, 40, 48)
    assert "position is rope3d, but sincos3d" in message(*given, "--position", "sincos3d")
    assert "holds no readable codec" in message("--codec", tmp_path, "--text", "minilm")

    broken = Path(shutil.copytree(published, tmp_path / "broken"))
    weights = broken / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert f"{weights}: truncated or not a safetensors file" in message(*given, folder=broken)
    (broken / "config.json").write_text("{")
    assert f"{broken}/config.json: not readable as JSON" in message(*given, folder=broken)


def test_parity(refusal, published, tmp_path):
    (tmp_path / "empty").mkdir()
    golden = tmp_path / "golden.safetensors"
    assert f"{golden}: no such file" in refusal("convert", "parity", published, golden)
    golden.write_bytes(b"nothing")
    assert f"{golden}: truncated or not a safetensors file" in refusal("convert", "parity", published, golden)
    save_file({"x0": torch.zeros(1)}, golden)
    assert "nowhere/config.json: no such file" in refusal("convert", "parity", "nowhere", golden)
    assert "tensor noise is missing" in refusal("convert", "parity", published, golden)
    assert "invalid choice: 'check'" in refusal("convert", "check")

    surplus = Path(shutil.copytree(published, tmp_path / "surplus"))
    weights = surplus / "diffusion_pytorch_model.safetensors"
    save_file({**load_file(weights), "more": torch.zeros(1)}, weights)
    assert "tensor more has no place" in refusal("convert", "parity", surplus, golden)


def test_data(refusal):
    assert "recipe 'contentv_8b' has no clips; recipes with clips: quickstart" in refusal("data", "contentv_8b")


def test_a_broken_configuration_file(refusal, run_copy):
    path = run_copy / "config.yaml"
    text = path.read_text()
    for old, new, words in (
        ("max_steps: 6", "max_steps: six", "trainer.max_steps is 'six' (str); it must be a whole number"),
        ("max_steps:", "max_stepz:", "did you mean max_steps?"),
        ("recipe:", "\trecipe:", "is not plain YAML"),
    ):
        path.write_text(text.replace(old, new))
        assert words in refusal("train", path)
    assert json.loads((run_copy / "outcome.json").read_text())["step"] == STEPS
