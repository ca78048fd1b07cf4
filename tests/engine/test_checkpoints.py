"""The small files of a checkpoint: which folders count, which are kept, what is refused and why."""

import hashlib
import json
from dataclasses import replace

import pytest

from contentv.engine.checkpoints import (
    CheckpointFacts,
    CheckpointFolder,
    check_data,
    check_resume,
    read_facts,
    tensor_digests,
    write_facts,
)
from contentv.engine.data.shards import ShardDataset
from tests.engine.sealed import change_sealed
from tests.engine.small_run import small_config


@pytest.fixture
def config(shards, tmp_path):
    return small_config(tmp_path / "run", shards)


@pytest.fixture
def facts(shards):
    dataset = ShardDataset(shards)
    return CheckpointFacts(
        step=2,
        sample_index=8,
        kernels={"adamw": "reference"},
        codec_identity=dataset.codec_identity,
        text=dataset.manifest.text,
        clip_size=(5, 32, 48),
    )


@pytest.fixture
def folder(tmp_path, shards, config, facts):
    """A checkpoint but for real tensors."""
    folder = CheckpointFolder(tmp_path / "run").path(2)
    (folder / "tensors").mkdir(parents=True)
    (folder / "tensors" / "__0_0.distcp").write_bytes(b"weights")
    write_facts(folder, {}, facts=facts, config=config, codec_folder=ShardDataset(shards).codec_folder)
    return folder


def test_only_whole_checkpoints_count(tmp_path):
    checkpoints = CheckpointFolder(tmp_path)
    assert checkpoints.steps() == [] and checkpoints.latest() is None
    for name in ("step-00000009", "step-00000010", "step-100000000", ".step-00000011.partial", "step-backup", "step-7"):
        (checkpoints.folder / name).mkdir(parents=True)
    (checkpoints.folder / "step-00000012").write_text("a file")
    assert checkpoints.steps() == [9, 10, 100_000_000]
    assert checkpoints.latest() == checkpoints.path(100_000_000)


@pytest.mark.parametrize(("keep", "left"), [(1, [4]), (2, [3, 4]), (9, [1, 2, 3, 4]), (0, [1, 2, 3, 4])])
def test_the_newest_are_kept(tmp_path, keep, left):
    checkpoints = CheckpointFolder(tmp_path)
    for step in (1, 2, 3, 4):
        checkpoints.path(step).mkdir(parents=True)
    (checkpoints.folder / "notes").mkdir()
    checkpoints.prune(keep)
    assert checkpoints.steps() == left and (checkpoints.folder / "notes").is_dir()


def test_facts_come_back_as_they_were_written(folder, facts):
    assert read_facts(folder) == facts
    assert set(json.loads((folder / "checkpoint.json").read_text())["files"]) == {
        "config.yaml", "codec/codec.json", "codec/codec.safetensors", "tensors/__0_0.distcp",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "JSONDecodeError"),
        (b'{"format": "contentv-che', "JSONDecodeError"),
        (b"[]", "format is 'list'"),
        (b"{}", "format is None"),
        (b"\xff\xfe", "UnicodeDecodeError"),
        (b'{"format": "contentv-checkpoint-1"}', "format is 'contentv-checkpoint-1'; this version reads"),
        (b'{"format": "contentv-checkpoint-2"}', "found digest .* expected None"),
        (b'{"format": "contentv-checkpoint-2", "step": 1, "step": 2}', "holds the key 'step' twice"),
        (b'{"step": NaN}', "holds NaN"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_broken_facts_are_refused(folder, content, words):
    (folder / "checkpoint.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"checkpoint.json: .*({words})"):
        read_facts(folder)


def test_an_unknown_or_missing_fact_is_refused(folder):
    path = folder / "checkpoint.json"
    whole = path.read_bytes()
    for change, words in (
        (lambda content: content.update(surprise=1), "unknown key surprise"),
        (lambda content: content.pop("step"), "the key step is missing"),
        (lambda content: content.update(step="six"), "step is 'six'"),
        (lambda content: content.update(clip_size=[5, 32]), "clip_size is .* a list of 3"),
    ):
        change_sealed(path, change)
        with pytest.raises(ValueError, match=f"checkpoint.json: {words}.*remove the checkpoint's folder"):
            read_facts(folder)
        path.write_bytes(whole)


@pytest.mark.parametrize("name", ["tensors/__0_0.distcp", "config.yaml", "codec/codec.safetensors"])
def test_a_file_that_is_cut_short_or_missing_is_named(folder, name):
    path = folder / name
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{name}: found {size - 1}; expected {size} bytes: restore it"):
        read_facts(folder)
    path.unlink()
    with pytest.raises(ValueError, match=rf"{name}: found no file; expected {size} bytes"):
        read_facts(folder)


@pytest.mark.parametrize("name", ["config.yaml", "codec/codec.json", "codec/codec.safetensors"])
def test_a_flipped_bit_in_a_small_file_is_named(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: not the bytes this checkpoint was written with"):
        read_facts(folder)


@pytest.mark.parametrize("name", ["../config.yaml", "/etc/hostname", "", "codec/../../x"])
def test_a_record_of_a_file_outside_is_refused(folder, name):
    change_sealed(
        folder / "checkpoint.json", lambda content: content["files"].update({name: content["files"]["config.yaml"]})
    )
    with pytest.raises(ValueError, match="files says .* expected bytes and sha256 of a file in this folder"):
        read_facts(folder)


def test_digests_that_other_ranks_computed_are_recorded(tmp_path, shards, config, facts):
    (tmp_path / "tensors").mkdir()
    for name in ("__0_0.distcp", "__1_0.distcp", ".metadata"):
        (tmp_path / "tensors" / name).write_bytes(name.encode())
    codec = ShardDataset(shards).codec_folder
    write_facts(tmp_path, {"__1_0.distcp": "1" * 64}, facts=facts, config=config, codec_folder=codec)
    assert tensor_digests(tmp_path) == {
        "__0_0.distcp": hashlib.sha256(b"__0_0.distcp").hexdigest(),
        "__1_0.distcp": "1" * 64,
        ".metadata": hashlib.sha256(b".metadata").hexdigest(),
    }


def test_what_may_change_over_a_resume_is_allowed(folder, facts, config):
    changed = replace(
        config,
        trainer=replace(config.trainer, max_steps=99, micro_batch=1, checkpoint_every=7),
        optimizer=replace(config.optimizer, learning_rate=1e-5),
        kernels=replace(config.kernels, wish=("adamw=auto",)),
    )
    check_resume(folder, facts, changed, facts.codec_identity, facts.text)


def test_other_data_or_kernels_are_refused(folder, facts, config):
    with pytest.raises(ValueError, match=r"codec 1.* holds 2222.*: point data.folder at the former"):
        check_data(folder, replace(facts, codec_identity="1" * 64), config.data.folder, "2" * 64, facts.text)
    with pytest.raises(ValueError, match="captions of text .*random.* holds .*other"):
        check_resume(folder, facts, config, facts.codec_identity, replace(facts.text, kind="other"))
    wish = replace(config, kernels=replace(config.kernels, wish=("adamw=reference",)))
    another = replace(facts, kernels={"adamw": "another"})
    with pytest.raises(ValueError, match="made with adamw -> another, but this run wishes for reference"):
        check_resume(folder, another, wish, facts.codec_identity, facts.text)
