"""The training loop: what it leaves behind, how it stops, how it goes on."""

import json
from dataclasses import replace

import pytest
import torch

from contentv.engine import config_yaml
from contentv.engine.checkpoints import CheckpointFolder, read_facts
from contentv.engine.data.manifest import Bucket
from contentv.engine.data.shards import ShardDataset
from contentv.engine.metrics import read_metrics
from contentv.engine.session import Session, usual_clip
from contentv.engine.signals import StopSignals
from contentv.engine.trainer import NonFiniteError, learning_rate_at, train
from contentv.kernels import host_memory
from contentv.model.cost import count_operations
from contentv.parallel.checkpoint import VerifiedTensors, plain_tensors
from contentv.parallel.config import ParallelConfig
from contentv.parallel.mesh import build_mesh
from tests.engine.sealed import change_sealed
from tests.engine.small_run import MODEL, small_config, write_shards


class Stop(StopSignals):
    """Asks to stop once it was looked at `after` times: a signal during step `after`."""

    def __init__(self, after: int):
        super().__init__()
        self.left = after

    @property
    def stop_requested(self) -> bool:
        self.left -= 1
        return self.left <= 0


def test_a_sample_is_by_default_what_most_of_the_longest_clips_are():
    landscape, portrait, image = Bucket(125, 432, 768), Bucket(125, 816, 400), Bucket(1, 1024, 1024)
    assert usual_clip({portrait: 1, landscape: 9, image: 500}) == landscape


def lines_of(config):
    return read_metrics(f"{config.run.folder}/metrics.jsonl")


def values(config):
    return [(line["step"], line["loss"], line["grad_norm"], line["lr"]) for line in lines_of(config) if "loss" in line]


def same_tensors(one, other) -> bool:
    mesh = build_mesh(ParallelConfig())
    left, right = (plain_tensors(VerifiedTensors(each), mesh) for each in (one, other))
    assert len(left) > 100
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_resumed_run_repeats_an_undisturbed_one_bit_for_bit(shards, tmp_path):
    whole = small_config(tmp_path / "whole", shards, trainer={"max_steps": 7})
    parts = replace(whole, run=replace(whole.run, folder=str(tmp_path / "parts")))
    assert train(whole, StopSignals()).complete
    stopped = train(parts, Stop(after=3))
    assert (stopped.step, stopped.complete) == (3, False)
    # A later half line and a later whole line, as a kill leaves them.
    with open(tmp_path / "parts" / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 4, "loss": 0.0}) + '\n{"step": 5, "lo')
    assert train(parts, StopSignals()).complete
    assert values(parts) == values(whole)
    assert [line["step"] for line in lines_of(parts)] == list(range(1, 8))
    last = [CheckpointFolder(config.run.folder).path(7) for config in (whole, parts)]
    assert same_tensors(*last)


def test_a_complete_run_is_left_alone(shards, tmp_path):
    config = small_config(tmp_path, shards)
    train(config, StopSignals())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").rglob("*")}
    assert train(config, StopSignals()).complete
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").rglob("*")} == before


def test_checkpoints_come_when_due_and_the_oldest_go(shards, tmp_path):
    config = small_config(tmp_path, shards, trainer={"max_steps": 7, "checkpoint_every": 2, "keep_checkpoints": 2})
    (tmp_path / "checkpoints" / ".step-00000003.partial" / "tensors").mkdir(parents=True)
    train(config, StopSignals())
    assert CheckpointFolder(tmp_path).steps() == [6, 7]
    assert not list((tmp_path / "checkpoints").glob(".*"))
    facts = read_facts(CheckpointFolder(tmp_path).path(7))
    assert (facts.step, facts.sample_index, facts.clip_size) == (7, 28, (5, 32, 48))
    assert config_yaml.load(tmp_path / "config.yaml").kernels.wishes() == facts.kernels


def test_metrics_up_to_a_checkpoint_are_on_disk_before_it_is_published(shards, tmp_path, monkeypatch):
    config = small_config(tmp_path, shards, trainer={"log_every": 100})
    seen = []

    def look(session, step):
        seen.append([line["step"] for line in lines_of(config)])

    monkeypatch.setattr(Session, "save", look)
    train(config, StopSignals())
    assert seen == [[1, 2], [1, 2, 3, 4]]


def test_validation_lines_never_carry_the_key_loss(shards, tmp_path):
    config = small_config(tmp_path, shards, trainer={"validate_every": 2})
    train(config, StopSignals())
    validation = [line for line in lines_of(config) if "validation_loss" in line]
    assert [line["step"] for line in validation] == [2, 4]
    assert all("loss" not in line and 0.1 < line["validation_loss"] < 10 for line in validation)


def test_a_step_that_is_not_finite_is_not_taken(shards, tmp_path):
    broken = write_shards(tmp_path / "shards")
    config = small_config(tmp_path / "run", broken, trainer={"max_steps": 6})
    train(replace(config, trainer=replace(config.trainer, max_steps=2)), StopSignals())
    good = CheckpointFolder(tmp_path / "run").path(2)

    def poisoned(dataset, sample_ids):
        batch = original(dataset, sample_ids)
        if 3 in sample_ids:
            batch.latents_BCFYX[list(sample_ids).index(3), 0, 0, 0, 0] = float("nan")
        return batch

    original = ShardDataset.read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardDataset, "read", poisoned)
        with pytest.raises(
            NonFiniteError, match=r"sample ids \[3\].*last good checkpoint is .*step-0000000[24]"
        ) as hit:
            train(config, StopSignals())
    step = int(str(hit.value).split()[1])
    assert 3 <= step <= 6
    assert CheckpointFolder(tmp_path / "run").path(2) == good
    assert max(line["step"] for line in lines_of(config)) == step - 1
    # Without the poison it goes on from the last good checkpoint to its end.
    assert train(config, StopSignals()).complete


def test_a_stop_request_saves_and_reports_unfinished(shards, tmp_path):
    config = small_config(tmp_path, shards, trainer={"max_steps": 9, "checkpoint_every": 100})
    outcome = train(config, Stop(after=2))
    assert (outcome.step, outcome.complete) == (2, False)
    assert CheckpointFolder(tmp_path).steps() == [2]
    assert json.loads((tmp_path / "outcome.json").read_text()) == {"step": 2, "complete": False, "signal": None}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"layers": 3}}, "model"),
        ({"trainer": {"seed": 5}}, "trainer.seed"),
        ({"trainer": {"global_batch": 8}}, "trainer.global_batch"),
        ({"trainer": {"precision": "bf16"}}, "trainer.precision"),
        ({"run": {"resume": False}}, "run.resume is False"),
    ],
)
def test_a_resume_refuses_what_would_be_another_run(shards, tmp_path, changes, words):
    CheckpointFolder(tmp_path).path(2).mkdir(parents=True)
    first = small_config(tmp_path, shards)
    from contentv.engine.checkpoints import CheckpointFacts, write_facts

    dataset = ShardDataset(shards)
    facts = CheckpointFacts(
        step=2, sample_index=8, kernels={}, codec_identity=dataset.codec_identity, text=dataset.manifest.text,
        clip_size=(5, 32, 48),
    )  # fmt: skip
    write_facts(CheckpointFolder(tmp_path).path(2), {}, facts=facts, config=first, codec_folder=dataset.codec_folder)
    with pytest.raises(ValueError, match=words):
        train(small_config(tmp_path, shards, **changes), StopSignals())


def test_a_resume_refuses_other_latents(shards, tmp_path):
    config = small_config(tmp_path / "run", shards)
    train(replace(config, trainer=replace(config.trainer, max_steps=2)), StopSignals())
    path = CheckpointFolder(tmp_path / "run").path(2) / "checkpoint.json"
    change_sealed(path, lambda facts: facts.update(codec_identity="f" * 64))
    with pytest.raises(ValueError, match="trained on latents and captions of codec ffff"):
        train(config, StopSignals())


def test_text_of_another_width_is_refused(shards, tmp_path):
    config = small_config(tmp_path, shards, model={"text_width": 48})
    with pytest.raises(ValueError, match=r"model.text_width is 48, but .* 24 wide .*--model.text-width 24"):
        train(config, StopSignals())
    assert not (tmp_path / "config.yaml").exists()


def test_bf16_with_fp32_masters_follows_fp32(shards, tmp_path):
    curves = {}
    for precision in ("fp32", "bf16"):
        optimizer = {"learning_rate": 3e-3, "ema_decay": 0.5}
        config = small_config(
            tmp_path / precision, shards, trainer={"precision": precision, "max_steps": 8}, optimizer=optimizer
        )
        train(config, StopSignals())
        curves[precision] = torch.tensor([loss for _, loss, _, _ in values(config)])
    # bf16 carries 8 bits: two roundings of each loss's parts stay well inside 2 %.
    assert torch.allclose(curves["bf16"], curves["fp32"], rtol=2e-2)
    assert not torch.equal(curves["bf16"], curves["fp32"])
    tensors = plain_tensors(VerifiedTensors(CheckpointFolder(tmp_path / "bf16").path(8)), build_mesh(ParallelConfig()))
    masters = [tensor for name, tensor in tensors.items() if name.startswith("optimizer.state.param.")]
    assert all(tensor.dtype == torch.float32 for tensor in masters)
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in masters), "masters were rounded"


def test_recompute_changes_nothing(shards, tmp_path):
    curves = []
    for recompute in ("none", "full"):
        config = small_config(tmp_path / recompute, shards, trainer={"recompute": recompute})
        train(config, StopSignals())
        curves.append(values(config))
    assert curves[0] == curves[1]


@pytest.mark.parametrize(("schedule", "expected"), [("constant", 1.0), ("cosine", 0.5)])
def test_learning_rate(schedule, expected):
    config = replace(small_config("none", "none").optimizer, learning_rate=2.0, warmup_steps=10, schedule=schedule)
    assert learning_rate_at(1, config, 110) == pytest.approx(0.2)
    assert learning_rate_at(10, config, 110) == 2.0
    assert learning_rate_at(60, config, 110) == pytest.approx(2.0 * expected)
    assert learning_rate_at(110, config, 110) == pytest.approx(2.0 if schedule == "constant" else 0.0)


def test_a_line_says_how_much_of_the_device_was_used(shards, tmp_path):
    unknown = small_config(tmp_path / "unknown", shards, trainer={"max_steps": 1, "recompute": "full"})
    known = small_config(tmp_path / "known", shards, trainer={"max_steps": 1, "recompute": "full", "peak_tflops": 2.0})
    operations = count_operations(MODEL, video_tokens=12, text_tokens=5, batch=4, recompute="full")
    for config, peak in ((unknown, None), (known, 2.0)):
        train(config, StopSignals())
        (line,) = lines_of(config)
        assert line["tflops"] * line["seconds"] == pytest.approx(operations.model / 1e12)
        assert line["mfu"] == (peak and pytest.approx(line["tflops"] / peak))
        assert line["hfu"] == (peak and pytest.approx(line["mfu"] * operations.hardware / operations.model))
        assert line["tokens"] == (12 + 5) * 4


@pytest.mark.parametrize("reason", [None, "csrc/memory is not built"])
def test_a_run_without_the_arena_says_so(shards, tmp_path, capsys, monkeypatch, reason):
    monkeypatch.setattr(host_memory, "install", lambda: reason)
    assert train(small_config(tmp_path, shards), StopSignals()).complete
    said = capsys.readouterr().err
    assert ("a third more memory: csrc/memory is not built" in said) == (reason is not None)
