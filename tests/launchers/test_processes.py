"""`contentv train` in real processes: stop signals, a kill, several ranks; every step once and the losses unchanged."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from contentv.engine.checkpoints import CheckpointFolder
from contentv.engine.metrics import METRICS_FILE, read_metrics
from contentv.launchers import train
from tests.engine.small_run import write_shards
from tests.launchers.processes import all_end

STEPS, EVERY = 60, 20
STOPPED = 75
PATIENCE = 120
"""Seconds a process may take for anything."""


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """A small run from weights in which every path is open, so that a wrong gradient shows in the next loss."""
    shards = write_shards(tmp_path_factory.mktemp("processes"))
    values = {
        "data.folder": shards,
        "model.layers": 2,
        "model.heads": 2,
        "model.head-width": 16,
        "model.text-width": 24,
        "model.pooled-width": 24,
        "model.initialisation": "normal",
        "optimizer.warmup-steps": 0,
        "trainer.max-steps": STEPS,
        "trainer.micro-batch": 4,
        "trainer.checkpoint-every": EVERY,
        "trainer.validate-every": 0,
        "trainer.log-every": 1,
        "trainer.threads": 1,
    }
    return ["quickstart", *(str(word) for name, value in values.items() for word in (f"--{name}", value))]


@pytest.fixture(scope="module")
def undisturbed(options, tmp_path_factory):
    """What one process records that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert train.main([*options, "--run.folder", str(folder)]) == 0
    return recorded(folder)


@pytest.fixture
def launch(options, tmp_path):
    """Starts the command as a user does, on `tmp_path/run`; whatever is left of it goes in the end."""
    started = []

    def start(*launcher, more=(), folder=tmp_path / "run"):
        log = tmp_path / f"log-{len(started)}.txt"
        command = [sys.executable, *launcher, "-m", "contentv.launchers.train", *options, *more]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--run.folder", str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1", "CONTENTV_DEVICE": "cpu"},
            )
        process.log = log
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            # A rank that is killed leaves the helper process of megatron's checkpoint writer behind.
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def recorded(folder):
    """(step, loss, grad_norm, lr) of every training line."""
    lines = read_metrics(folder / METRICS_FILE) if (folder / METRICS_FILE).exists() else []
    return [(line["step"], line["loss"], line["grad_norm"], line["lr"]) for line in lines if "loss" in line]


def wait_until(process, ready):
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert process.poll() is None and time.monotonic() < deadline, process.log.read_text()[-3000:]
        time.sleep(0.005)


def status_of(process):
    try:
        return process.wait(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise AssertionError(process.log.read_text()[-3000:]) from None


def outcome(folder):
    return json.loads((folder / "outcome.json").read_text())


def test_signals_and_a_kill_change_nothing(launch, undisturbed, tmp_path):
    run, checkpoints = tmp_path / "run", CheckpointFolder(tmp_path / "run")
    process = launch()
    wait_until(process, lambda: EVERY in checkpoints.steps() and len(recorded(run)) >= EVERY + 3)
    # To the whole group, as Slurm's time limit sends it: megatron's writer process, which the first save started and
    # the stop's own save needs, gets it too.
    os.killpg(process.pid, signal.SIGUSR1)
    assert status_of(process) == STOPPED, process.log.read_text()[-3000:]
    step = checkpoints.steps()[-1]
    assert EVERY + 3 <= step < 2 * EVERY, "the signal came too late to be one in mid run"
    assert [line[0] for line in recorded(run)] == list(range(1, step + 1))
    assert outcome(run) == {"step": step, "complete": False, "signal": "SIGUSR1"}

    process = launch()
    wait_until(process, lambda: 2 * EVERY in checkpoints.steps() and len(recorded(run)) >= 2 * EVERY + 3)
    process.kill()
    assert status_of(process) == -signal.SIGKILL
    assert not (run / "outcome.json").exists()
    assert len(recorded(run)) >= 2 * EVERY + 3 and checkpoints.steps()[-1] == 2 * EVERY

    process = launch()
    assert status_of(process) == 0, process.log.read_text()[-3000:]
    assert f"resumes after step {2 * EVERY}" in process.log.read_text()
    assert outcome(run) == {"step": STEPS, "complete": True, "signal": None}
    assert [line[0] for line in recorded(run)] == list(range(1, STEPS + 1))
    assert recorded(run) == undisturbed


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "0")
TORCHRUN += ("--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1")


def rank_process(process, rank):
    """The process of a rank among torchrun's children."""
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.environ().get("RANK") == str(rank) and "contentv.launchers.train" in child.cmdline():
                return child
    raise AssertionError(f"torchrun has no rank {rank}")


def test_two_ranks_compute_what_one_does_and_stop_together(launch, undisturbed, tmp_path):
    run, checkpoints = tmp_path / "run", CheckpointFolder(tmp_path / "run")
    process = launch(*TORCHRUN)
    wait_until(process, lambda: len(recorded(run)) >= 3)
    ranks = [rank_process(process, rank) for rank in (0, 1)]
    ranks[1].send_signal(signal.SIGTERM)
    # torchrun passes no exit status on: a rank's 75 is its 1, and outcome.json says which it was.
    assert status_of(process) == 1
    assert all_end(ranks)
    (step,) = checkpoints.steps()
    assert 3 <= step < EVERY and outcome(run)["step"] == step and not outcome(run)["complete"]
    assert process.log.read_text().count(f"exitcode  : {STOPPED}") >= 1

    process = launch(*TORCHRUN)
    assert status_of(process) == 0, process.log.read_text()[-3000:]
    assert outcome(run) == {"step": STEPS, "complete": True, "signal": None}
    two = recorded(run)
    assert [line[0] for line in two] == list(range(1, STEPS + 1))
    assert two == [pytest.approx(line, rel=1e-5) for line in undisturbed]


@pytest.mark.slow
def test_a_signal_to_torchrun_reaches_all_ranks(launch, tmp_path):
    run = tmp_path / "run"
    process = launch(*TORCHRUN)
    wait_until(process, lambda: len(recorded(run)) >= 3)
    ranks = [rank_process(process, rank) for rank in (0, 1)]
    process.send_signal(signal.SIGUSR1)
    assert status_of(process) == 1
    assert all_end(ranks)
    assert outcome(run)["signal"] == "SIGUSR1" and not outcome(run)["complete"]
    assert CheckpointFolder(run).steps() == [outcome(run)["step"]]


def test_four_ranks_of_two_axes_under_torchrun_give_one_process_numbers(launch, tmp_path):
    """Tensor 2 x pipeline 2 with six heads, as an operator starts it."""
    changes = ["--model.layers", "4", "--model.heads", "6", "--trainer.max-steps", "5"]
    alone = launch(more=changes, folder=tmp_path / "alone")
    four = TORCHRUN[:3] + ("--nproc-per-node", "4") + TORCHRUN[5:]
    divided = ["--parallel.tensor", "2", "--parallel.pipeline", "2"]
    assert status_of(alone) == 0, alone.log.read_text()[-3000:]
    together = launch(*four, more=[*changes, *divided], folder=tmp_path / "together")
    assert status_of(together) == 0, together.log.read_text()[-3000:]
    found, expected = recorded(tmp_path / "together"), recorded(tmp_path / "alone")
    assert len(expected) == 5 and found == [pytest.approx(line, rel=1e-5) for line in expected]
