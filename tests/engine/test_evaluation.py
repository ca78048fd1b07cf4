"""A run's figures: what counts as evidence of a bit-equal resume, and what a matched caption is."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from contentv.engine import evaluation
from contentv.engine.checkpoints import CheckpointFolder
from contentv.engine.data.encode import mean_codec_psnr
from contentv.engine.data.manifest import Bucket
from contentv.engine.data.shard_writer import Sample, ShardWriter
from contentv.engine.data.shards import ShardDataset
from contentv.engine.evaluation import evaluate, resume_is_bit_equal
from contentv.engine.probe import directly, probe_loss
from contentv.engine.resume_evidence import REPEATED_STEPS, RESUMED, UNDISTURBED
from contentv.engine.sampling import find_checkpoint, load_model, untrained_model
from contentv.kernels.registry import choose
from contentv.model.codecs import load_codec
from contentv.model.text import load_text
from contentv.parallel.config import ParallelConfig
from contentv.parallel.mesh import build_mesh
from tests.engine.real_run import CAPTIONS, SIZE, STEPS, windows

HALF = 100
LAST = HALF + REPEATED_STEPS


def write_metrics(folder, steps, changed=None):
    """Lines of made-up training; `changed` is (step, key), whose value differs in its last bit."""
    lines = []
    for step in steps:
        line = {"step": step, "loss": 1.0 + 0.1 * step, "grad_norm": 0.5, "lr": 1e-3, "seconds": 0.1}
        if changed and changed[0] == step:
            line[changed[1]] = line[changed[1]] * (1 + 2**-52)
        lines.append(json.dumps(line) + "\n")
    lines.insert(1, json.dumps({"step": steps[0], "validation_loss": 1.0}) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines))


@pytest.fixture
def evidence(tmp_path, real_run):
    """A run of 2 x HALF steps that was stopped at LAST and resumed from HALF, both checkpoints the same."""
    checkpoint = CheckpointFolder(real_run).path(STEPS)
    for place in (UNDISTURBED, RESUMED):
        shutil.copytree(checkpoint, CheckpointFolder(tmp_path / place).path(LAST))
    write_metrics(tmp_path, range(1, 2 * HALF + 1))
    write_metrics(tmp_path / UNDISTURBED, range(1, LAST + 1))
    return tmp_path


def is_bit_equal(folder):
    return resume_is_bit_equal(folder, build_mesh(ParallelConfig()))


def test_equal_lines_and_tensors_are_bit_equal(evidence):
    assert is_bit_equal(evidence) is True
    # What one of them did after the last common step, or both before the stop, is no matter.
    write_metrics(evidence, range(1, 2 * HALF + 1), changed=(LAST + 1, "loss"))
    assert is_bit_equal(evidence) is True


@pytest.mark.parametrize(
    ("steps", "changed"),
    [
        (range(1, 2 * HALF + 1), (HALF + 1, "loss")),
        (range(1, 2 * HALF + 1), (LAST, "loss")),
        (range(1, 2 * HALF + 1), (HALF + 7, "grad_norm")),
        (range(1, 2 * HALF + 1), (HALF + 7, "lr")),
        (range(1, LAST), None),
        (range(HALF + 2, 2 * HALF), None),
    ],
)
def test_one_bit_or_one_step_less_is_not(evidence, steps, changed):
    write_metrics(evidence, steps, changed)
    assert is_bit_equal(evidence) is False


def test_one_bit_of_one_tensor_is_not(evidence, monkeypatch):
    read = evaluation.plain_tensors

    def altered(folder, mesh):
        tensors = read(folder, mesh)
        if RESUMED in str(folder):
            name = sorted(name for name in tensors if "ema" in name)[3]
            flat = tensors[name].flatten()
            flat[-1] = torch.nextafter(flat[-1], torch.tensor(9.0))
            tensors[name] = flat.view_as(tensors[name])
        return tensors

    monkeypatch.setattr(evaluation, "plain_tensors", altered)
    assert is_bit_equal(evidence) is False


def test_a_missing_tensor_is_not(evidence, monkeypatch):
    read = evaluation.plain_tensors
    monkeypatch.setattr(
        evaluation,
        "plain_tensors",
        lambda folder, mesh: dict(list(read(folder, mesh).items())[RESUMED in str(folder) :]),
    )
    assert is_bit_equal(evidence) is False


def test_a_process_that_starts_with_the_evidence_can_read_it(evidence, real_run):
    """As `contentv quickstart` runs it: nothing has joined a world of ranks before."""
    run = shutil.copytree(real_run, evidence / "run")
    for name in (UNDISTURBED, RESUMED, "metrics.jsonl"):
        (evidence / name).replace(run / name)
    command = [sys.executable, "-m", "contentv.launchers.evaluate", str(run), "--json"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert answer.returncode == 0, answer.stderr[-2000:]
    assert json.loads(answer.stdout)["resume_bit_equal"] is True


def test_without_evidence_nothing_is_claimed(evidence):
    shutil.rmtree(evidence / RESUMED)
    assert is_bit_equal(evidence) is False
    shutil.rmtree(CheckpointFolder(evidence / UNDISTURBED).path(LAST))
    assert is_bit_equal(evidence) is None
    shutil.rmtree(evidence / UNDISTURBED)
    assert is_bit_equal(evidence) is None


def no_progress(*_):
    return lambda done: None


def test_figures_are_recomputed_from_the_checkpoint(real_run):
    found = find_checkpoint(real_run)
    figures = evaluate(real_run, "ema", no_progress).figures()
    mesh = build_mesh(ParallelConfig())
    kernels = choose("cpu")
    losses = {}
    for split in ("train", "held_out"):
        dataset = ShardDataset(found.config.data.folder, split)
        ids = [sample for samples in dataset.samples().values() for sample in samples]
        models = (
            load_model(found, found.verify(mesh), mesh, kernels, "ema"),
            untrained_model(found.config, mesh, kernels),
        )
        losses[split] = [float(probe_loss(directly(model), dataset, ids, mesh, kernels, batch=1)) for model in models]
    assert figures["probe_ratio"] == pytest.approx(losses["train"][0] / losses["train"][1], rel=1e-6)
    assert figures["held_out_ratio"] == pytest.approx(losses["held_out"][0] / losses["held_out"][1], rel=1e-6)
    assert figures["probe_ratio"] < 1, "six steps of training lower the loss they train on"
    assert figures["captions"] == 3 and figures["resume_bit_equal"] is None
    assert figures["codec_psnr_db"] == mean_codec_psnr(found.config.data.folder)


def test_several_buckets_and_nothing_held_out(real_run, tmp_path, monkeypatch):
    """As `contentv encode` leaves few videos and some images; a progress line ends at its total."""
    found = find_checkpoint(real_run)
    codec, text = load_codec(found.folder / "codec"), load_text("minilm")
    tokens_BTW, pooled_BW = text.encode(list(CAPTIONS))
    writer = ShardWriter(tmp_path / "shards")
    for number in range(12):
        row = number % 3
        window_3FYX = windows()[CAPTIONS[row]][number // 3][:, : 1 if number < 2 else 5]
        latents_CFYX = codec.encode(window_3FYX[None])[0]
        sample = Sample(sample=number, latents_CFYX=latents_CFYX, tokens_TW=tokens_BTW[row], pooled_W=pooled_BW[row],
                        facts={"caption": CAPTIONS[row]})  # fmt: skip
        writer.add("train", Bucket(*window_3FYX.shape[1:]), sample)
    writer.close(codec, text)
    data = replace(found.config.data, folder=str(tmp_path / "shards"))
    monkeypatch.setattr(
        evaluation, "find_checkpoint", lambda _: replace(found, config=replace(found.config, data=data))
    )
    shown = {}

    def progress(title, total, unit):
        return lambda done: shown.update({title: (done, total)})

    figures = evaluate(real_run, "ema", progress).figures()
    assert figures["held_out_ratio"] is None and figures["codec_psnr_db"] is None and 0 < figures["probe_ratio"] < 1
    assert figures["captions"] == 3
    assert shown["probing the trained model, train"] == (4, 4)
    assert all(done == total for done, total in shown.values())


@pytest.mark.parametrize("right", [(0, 1, 2), (0, 2), (1,), ()])
def test_captions_matched_counts_nearest_windows(real_run, monkeypatch, right):
    """Samples that are a training window of their own caption, or of the next one, a little blurred."""
    dataset = ShardDataset(find_checkpoint(real_run).config.data.folder)

    def sampled(source, prompts, *_, **__):
        assert tuple(prompts) == CAPTIONS
        own = [5 * (index if index in right else (index + 1) % 3) + 2 for index in range(3)]
        return dataset.read(own).latents_BCFYX * 0.9

    monkeypatch.setattr(evaluation, "sample_latents", sampled)
    result = evaluate(real_run, "ema", no_progress)
    assert (result.captions, result.captions_matched) == (3, len(right))
    codec = load_codec(dataset.codec_folder)
    for caption, pixels_3FYX in result.samples.items():
        window = 5 * (
            CAPTIONS.index(caption) if CAPTIONS.index(caption) in right else (CAPTIONS.index(caption) + 1) % 3
        )
        expected = codec.decode(dataset.read([window + 2]).latents_BCFYX * 0.9)[0]
        torch.testing.assert_close(pixels_3FYX, expected)
        assert tuple(pixels_3FYX.shape) == (3, *SIZE)


def test_data_of_another_codec_are_refused(real_run, monkeypatch):
    read = evaluation.find_checkpoint

    def another(folder):
        found = read(folder)
        return replace(found, facts=replace(found.facts, codec_identity="f" * 64))

    monkeypatch.setattr(evaluation, "find_checkpoint", another)
    with pytest.raises(ValueError, match="trained on latents and captions of codec ffff"):
        evaluate(real_run, "ema", no_progress)
