"""`contentv quickstart`: what a first and a second call do, and how a call goes on where another was interrupted."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from contentv.engine import config_yaml, resume_evidence
from contentv.engine.checkpoints import FORMAT, CheckpointFacts, CheckpointFolder
from contentv.engine.data.manifest import FileEntry, Manifest, TextEntry, write_manifest
from contentv.kernels.config import KernelConfig
from contentv.launchers import footprint, quickstart, recipes
from tests.engine.sealed import change_sealed
from tests.launchers import fake_stage
from tests.launchers.processes import all_end, is_alive

FAKE = fake_stage.__file__
RUN = Path("runs/quickstart")
FIRST = ["data quickstart --clips-only", "data quickstart", "train quickstart", "train quickstart",
         "evaluate runs/quickstart --json --pictures"]  # fmt: skip
HALF = fake_stage.LAST // 2


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """The recipe scaled down to 40 steps that a stand-in takes; the kill comes at step 30."""
    monkeypatch.chdir(tmp_path)
    base = recipes.quickstart()
    config = replace(base, trainer=replace(base.trainer, max_steps=fake_stage.LAST, checkpoint_every=fake_stage.EVERY))
    monkeypatch.setitem(recipes.RECIPES, "quickstart", lambda: config)
    monkeypatch.setattr(quickstart, "REPEATED_STEPS", fake_stage.HELD_AT - HALF)
    give(config)
    monkeypatch.setattr(quickstart, "stage", lambda *words: [sys.executable, FAKE, *words])
    monkeypatch.setattr(footprint, "INTERVAL", 0.01)
    monkeypatch.setenv("HOLD", "")


def give(config):
    """What the stand-in leaves: shards' manifest, a checkpoint's facts, the configuration."""
    text = TextEntry(kind="minilm", identity="a" * 64, tokens=16, width=384, pooled_width=384)
    shards = Path(config.data.folder)
    write_manifest(
        shards,
        Manifest(
            source="",
            codec_kind="pca",
            codec_identity="b" * 64,
            codec_folder="codec",
            text=text,
            empty_caption=FileEntry(file="empty", sha256="0"),
            shards=(),
        ),
    )
    facts = CheckpointFacts(
        step=1, sample_index=8, kernels={}, codec_identity="b" * 64, text=text, clip_size=(17, 64, 96)
    )
    fake_stage.GIVEN.mkdir(exist_ok=True)
    path = fake_stage.GIVEN / "checkpoint.json"
    path.write_text(json.dumps({"format": FORMAT, **asdict(facts), "files": {}}))
    change_sealed(path, lambda _content: None)
    kernels = KernelConfig(wish=("adamw=reference",))
    config_yaml.save(replace(config, kernels=kernels), fake_stage.GIVEN)


def calls():
    """What was started since the last look."""
    log = Path("calls.log")
    started = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return started


def processes(folder):
    """Step -> the process that took it; every step stands once."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return {line["step"]: line["process"] for line in lines}


def check_evidence():
    """The killed process's steps and last checkpoint, and the resumed process's checkpoint of that same step."""
    undisturbed, resumed = CheckpointFolder(RUN / "undisturbed"), CheckpointFolder(RUN / "resumed")
    assert undisturbed.steps() == resumed.steps() == [30]
    before, after = processes(RUN / "undisturbed"), processes(RUN)
    assert list(before) == list(range(1, 31)) and len(after) == fake_stage.LAST
    assert all(before[step] != after[step] for step in range(HALF + 1, 31)), "the same process took both"
    assert all(before[step] == after[step] for step in range(1, HALF + 1)), "it did not resume from the half"
    wrote = [(folder.path(30) / "tensors").read_text() for folder in (undisturbed, resumed)]
    assert wrote == [str(before[30]), str(after[30])]
    assert CheckpointFolder(RUN).steps() == [30, 40]


def test_the_first_call_makes_everything_and_the_second_reuses_it(capfd):
    assert quickstart.main([]) == 0
    printed = capfd.readouterr()
    assert calls() == FIRST
    check_evidence()
    for place in quickstart.PLACES.values():
        assert (RUN / place).exists() and f" {RUN / place}\n" in printed.out
    summary = json.loads((RUN / "summary.json").read_text())
    assert summary["probe_ratio"] == 0.2 and summary["seconds"] > 0 and summary["peak_rss_mib"] > 10
    assert (RUN / "summary.json").read_text() in printed.out
    assert summary.keys() == fake_stage.FIGURES.keys()
    lines = printed.out.splitlines()
    assert [line.split()[0] for line in lines[-7:-1]] == ["met"] * 6 and lines[-1] == "quickstart: every limit met"

    assert quickstart.main([]) == 0
    printed = capfd.readouterr()
    assert calls() == FIRST[:2], "fetching and encoding know for themselves what is there"
    assert "training: reusing runs/quickstart/checkpoints/step-00000040, which is complete" in printed.err
    assert "samples and figures: reusing those of runs/quickstart/summary.json" in printed.err
    assert json.loads((RUN / "summary.json").read_text()) == summary

    (RUN / "contact_sheet.png").unlink()
    assert quickstart.main([]) == 0
    assert calls() == [*FIRST[:2], FIRST[-1]]
    assert json.loads((RUN / "summary.json").read_text())["seconds"] >= summary["seconds"]


@pytest.mark.parametrize(
    ("trouble", "status", "again"),
    [
        ("1:0:3", 3, FIRST),
        ("2:0:3", 3, FIRST),
        ("3:5:3", 3, FIRST),
        ("3:15:75", 75, FIRST),
        ("3:15:SIGKILL", 1, FIRST),
        ("3:25:3", 3, FIRST),
        ("3:25:SIGKILL", 1, FIRST),
        ("4:21:3", 3, [*FIRST[:2], *FIRST[3:]]),
        ("4:25:SIGKILL", 1, [*FIRST[:2], *FIRST[3:]]),
        ("4:35:75", 75, [*FIRST[:2], *FIRST[3:]]),
        ("5:0:3", 3, [*FIRST[:2], *FIRST[4:]]),
    ],
)
def test_a_call_goes_on_where_another_failed(monkeypatch, capfd, trouble, status, again):
    monkeypatch.setenv("TROUBLE", trouble)
    assert quickstart.main([]) == status
    failed = int(trouble.split(":")[0])
    assert f"error: the stage `{FIRST[failed - 1]}` ended with status" in capfd.readouterr().err
    assert calls() == FIRST[:failed]
    monkeypatch.delenv("TROUBLE")
    assert quickstart.main([]) == 0
    assert calls() == again
    check_evidence()


@pytest.mark.parametrize("place", ["copy", "rmtree"])
def test_an_interruption_between_kill_and_resume_is_repeated_whole(monkeypatch, capfd, place):
    with monkeypatch.context() as patch:
        # The third removal is that of a copy's leftovers, as the resumed process publishes its checkpoint.
        real, left = getattr(shutil, place), [2 if place == "rmtree" else 0]

        def interrupted(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        patch.setattr(resume_evidence.shutil, place, interrupted)
        assert quickstart.main([]) == 130
    assert calls() == FIRST[: 3 if place == "copy" else 4]
    assert quickstart.main([]) == 0
    check_evidence()


def test_a_checkpoint_that_could_not_be_kept_ends_the_stage_and_is_kept_by_the_next_call(monkeypatch):
    def full(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(resume_evidence, "hard_link", full)
        with pytest.raises(OSError, match="no space left"):
            quickstart.main([])
    assert calls() == FIRST[:4]
    assert quickstart.main([]) == 0
    check_evidence()


def test_a_run_that_was_never_killed_is_finished_and_said_to_have_no_evidence(monkeypatch, capfd):
    monkeypatch.delenv("HOLD")
    monkeypatch.setenv("FIGURES", json.dumps({"resume_bit_equal": None}))
    trouble = {**os.environ, "TROUBLE": "1:35:0"}
    subprocess.run([sys.executable, FAKE, "train", "quickstart"], check=True, env=trouble)
    shutil.rmtree(CheckpointFolder(RUN).path(20))
    calls()
    assert quickstart.main([]) == 1
    assert calls() == [*FIRST[:2], *FIRST[3:]]
    printed = capfd.readouterr()
    assert "past step 30 and was never killed" in printed.err
    assert "missed  resume_bit_equal     null  (true)\nmet " in printed.out
    assert printed.out.endswith("quickstart: missed resume_bit_equal\n")
    assert not (RUN / "undisturbed").exists() and not (RUN / "resumed").exists()


def test_time_and_memory_of_interrupted_calls_count(monkeypatch, capfd):
    monkeypatch.setenv("TROUBLE", "4:25:3")
    assert quickstart.main([]) == 3
    costs = json.loads((RUN / "costs.json").read_text())
    assert costs["seconds"] > 0 and costs["peak_rss_mib"] > 10
    (RUN / "costs.json").write_text(json.dumps({"seconds": 1000.0, "peak_rss_mib": 99999.0}))
    monkeypatch.delenv("TROUBLE")
    assert quickstart.main([]) == 0
    summary = json.loads((RUN / "summary.json").read_text())
    assert 1000 < summary["seconds"] < 1100 and summary["peak_rss_mib"] == 99999.0
    # A busy machine is no failure, but it is said.
    assert capfd.readouterr().out.endswith(
        "quickstart: good, but seconds, peak_rss_mib above the limit, as on a busy or slow machine: no failure\n"
    )


@pytest.mark.parametrize(
    ("figures", "missed"),
    [
        ({"probe_ratio": 0.36}, "probe_ratio"),
        ({"probe_ratio": float("nan")}, "probe_ratio"),
        ({"captions": 5, "captions_matched": 5}, "captions"),
        ({"captions_matched": 5}, "captions_matched"),
        ({"resume_bit_equal": False, "captions_matched": 0}, "captions_matched, resume_bit_equal"),
    ],
)
def test_a_missed_limit_is_named_and_ends_with_status_1(monkeypatch, capfd, figures, missed):
    monkeypatch.setenv("FIGURES", json.dumps(figures))
    assert quickstart.main([]) == 1
    out = capfd.readouterr().out
    assert out.endswith(f"quickstart: missed {missed}\n") and out.count("\nmissed ") == len(missed.split(", "))
    # Reused, it is judged again.
    assert quickstart.main([]) == 1
    assert capfd.readouterr().out.endswith(f"quickstart: missed {missed}\n")


def everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("where", [".", "checkpoints/step-00000040"])
def test_a_run_of_another_recipe_is_refused_and_left_alone(capfd, where):
    assert quickstart.main([]) == 0
    file = RUN / where / "config.yaml"
    file.write_text(file.read_text().replace("learning_rate: 0.001", "learning_rate: 0.002") + "surplus: 1\n")
    before = everything(RUN)
    calls(), capfd.readouterr()
    assert quickstart.main([]) == 2
    assert capfd.readouterr().err == (
        f"error: {file} has optimizer.learning_rate 0.002, but recipe quickstart has 0.001: move or remove "
        "runs/quickstart, or start this in another folder\n"
    )
    file.write_text(file.read_text().replace("learning_rate: 0.002", "learning_rate: 0.001"))
    assert quickstart.main([]) == 2
    assert "has surplus 1, but recipe quickstart has nothing" in capfd.readouterr().err
    assert calls() == [] and everything(RUN).keys() == before.keys()


def put_in_place_of(old, new, content):
    for part in (content, content["text"]):
        part.update({key: new for key, value in part.items() if value == old})


@pytest.mark.parametrize("name", ["codec", "text encoder"])
def test_shards_of_another_codec_or_text_encoder_are_refused(capfd, name):
    assert quickstart.main([]) == 0
    facts = RUN / "checkpoints" / "step-00000040" / "checkpoint.json"
    former = "b" * 64 if name == "codec" else "a" * 64
    change_sealed(facts, lambda content: put_in_place_of(former, "c" * 64, content))
    calls(), capfd.readouterr()
    assert quickstart.main([]) == 2
    message = capfd.readouterr().err
    assert (
        f"{facts.parent} was trained with {name} {'c' * 12}, but data/quickstart/shards holds {former[:12]}" in message
    )
    assert "move or remove runs/quickstart" in message and former[:12] in message and calls() == FIRST[:2]


def test_figures_of_another_checkpoint_are_not_reused():
    """Newer than the checkpoint by its date, yet of another one: as after a copy, or a checkpoint put back."""
    assert quickstart.main([]) == 0
    facts = RUN / "checkpoints" / "step-00000040" / "checkpoint.json"
    change_sealed(facts, lambda content: content.update(sample_index=16))
    calls()
    assert quickstart.main([]) == 0
    assert calls() == [*FIRST[:2], FIRST[-1]]
    assert quickstart.main([]) == 0
    assert calls() == FIRST[:2]


def test_the_kill_must_come_at_a_checkpoint():
    trainer = recipes.RECIPES["quickstart"]().trainer
    for changes, message in (
        ({"checkpoint_every": 20}, "steps 20 and 30 must both leave a checkpoint, but one comes every 20"),
        ({"max_steps": 42}, "steps 21 and 31 must both leave a checkpoint"),
        ({"max_steps": 20}, "must come before the end, 20"),
        ({"keep_checkpoints": 1}, "while step 20 is still kept"),
    ):
        with pytest.raises(AssertionError, match=message):
            quickstart.kill_steps(replace(trainer, **changes))


def test_the_one_that_watches_weighs_little():
    """Its memory counts with that of the stages, so it never imports torch."""
    code = "import sys, contentv.launchers.quickstart; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_recipe_can_be_killed_and_compared(monkeypatch):
    monkeypatch.setattr(quickstart, "REPEATED_STEPS", resume_evidence.REPEATED_STEPS)
    half, killed_at = quickstart.kill_steps(recipes.quickstart().trainer)
    assert killed_at - half == resume_evidence.REPEATED_STEPS == 50


HANG = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
from contentv.launchers import quickstart
hang = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)']).wait()"
quickstart.stage = lambda *words: [sys.executable, "-c", hang]
sys.exit(quickstart.main([]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_ends_the_stage_and_all_it_started(number):
    with open("stderr.log", "w") as log:
        command = subprocess.Popen([sys.executable, "-c", HANG], stderr=log, start_new_session=True)
    started = []
    try:
        started += wait_for(lambda: psutil.Process(command.pid).children(recursive=True), 2)
        command.send_signal(number)
        assert command.wait(timeout=20) == 130
        assert all_end(started), "a process outlived the command"
        assert Path("stderr.log").read_text() == "interrupted; the same command goes on from here\n"
    finally:
        # These alone: other tests have processes of their own under this one.
        for process in started:
            if is_alive(process):
                process.kill()
        command.kill()
        command.wait()


def wait_for(look, count):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if len(found := look()) >= count:
            return found
        time.sleep(0.02)
    raise AssertionError(f"{look()} after 30 seconds")
