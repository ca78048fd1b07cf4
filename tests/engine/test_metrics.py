"""Metrics lines: every step once, bit for bit, on the disk when promised, and never a value read early."""

import json
import math

import numpy
import pytest
import torch

from contentv.engine import metrics
from contentv.engine.hardware import Utilisation
from contentv.engine.metrics import METRICS_FILE, TENSORBOARD_FOLDER, MetricsWriter, TrainingStep, read_metrics


class Events:
    """Stands for TensorBoard's writer, whose import costs seconds; one test below uses the real one."""

    def __init__(self):
        self.scalars = []

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))

    def flush(self):
        self.flushed = list(self.scalars)

    def close(self):
        self.closed = True


@pytest.fixture
def events(monkeypatch):
    written = Events()
    monkeypatch.setattr(metrics, "_open_events", lambda folder, resume_step: written)
    return written


def writer(folder, log_every=3, resume_step=0, enabled=True):
    return MetricsWriter(folder, log_every=log_every, resume_step=resume_step, max_steps=100, enabled=enabled)


def line(step, loss=0.1, grad_norm=1.5, **changes):
    used = Utilisation(tflops=0.5, mfu=0.25, hfu=None)
    values = {"lr": 1e-3, "tokens": 1088, "seconds": 0.25, "utilisation": used, "memory": 17.0} | changes
    return TrainingStep(step=step, loss=loss, grad_norm=grad_norm, **values)


def steps(folder):
    return [record["step"] for record in read_metrics(folder / METRICS_FILE)]


def test_a_line_holds_what_is_promised(tmp_path, events):
    log = writer(tmp_path)
    log.training(line(1))
    log.validation(1, torch.tensor(0.5))
    log.close()
    training, validation = (tmp_path / METRICS_FILE).read_text().splitlines()
    assert json.loads(training) == {
        "step": 1,
        "loss": 0.1,
        "grad_norm": 1.5,
        "lr": 0.001,
        "tokens": 1088,
        "seconds": 0.25,
        "tokens_per_second": 4352.0,
        "tflops": 0.5,
        "mfu": 0.25,
        "hfu": None,
        "memory": 17.0,
    }
    assert read_metrics(tmp_path / METRICS_FILE)[0]["hfu"] is None
    assert not [name for name, _, _ in events.scalars if name == "hfu"]
    assert json.loads(validation) == {"step": 1, "validation_loss": 0.5}
    assert ("loss", 0.1, 1) in events.scalars and ("validation_loss", 0.5, 1) in events.scalars
    assert events.closed


def test_device_values_return_bit_for_bit(tmp_path, events):
    generator = numpy.random.default_rng(3)
    words = generator.integers(0, 0x7F7FFFFF, size=257, dtype=numpy.uint32)
    values = words.view(numpy.float32)
    log = writer(tmp_path, log_every=10)
    for step, value in enumerate(values, 1):
        log.training(line(step, loss=torch.tensor(value), grad_norm=torch.tensor(-value)))
    log.close()
    records = read_metrics(tmp_path / METRICS_FILE)
    read = numpy.array([record["loss"] for record in records]).astype(numpy.float32)
    negated = numpy.array([record["grad_norm"] for record in records]).astype(numpy.float32)
    assert numpy.array_equal(read.view(numpy.uint32), words)
    assert numpy.array_equal(negated, -values)


def test_python_numbers_return_bit_for_bit(tmp_path, events):
    rates = [math.pi * 10.0**-power for power in range(1, 20)]
    log = writer(tmp_path)
    for step, rate in enumerate(rates, 1):
        log.training(line(step, lr=rate))
    log.close()
    assert [record["lr"] for record in read_metrics(tmp_path / METRICS_FILE)] == rates


def test_nothing_is_strange_to_strict_json(tmp_path, events):
    log = writer(tmp_path, log_every=1)
    log.training(line(1, loss=torch.tensor(math.nan), grad_norm=torch.tensor(math.inf)))
    log.training(line(2, loss=-math.inf, seconds=0.0))
    log.close()

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    written = [json.loads(each, parse_constant=refuse) for each in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert (written[0]["loss"], written[0]["grad_norm"]) == ("nan", "inf")
    assert (written[1]["loss"], written[1]["tokens_per_second"]) == ("-inf", "inf")
    first, second = read_metrics(tmp_path / METRICS_FILE)
    assert math.isnan(first["loss"]) and first["grad_norm"] == math.inf and second["loss"] == -math.inf


def test_values_reach_the_host_once_an_interval(tmp_path, events, monkeypatch):
    visits = []
    to_list = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: visits.append(tensor.numel()) or to_list(tensor))
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: pytest.fail("a single value was read"))
    log = writer(tmp_path, log_every=3)
    for step in range(1, 8):
        log.training(line(step, loss=torch.tensor(float(step)), grad_norm=torch.tensor(0.5)))
        assert len(steps(tmp_path)) == step // 3 * 3
    assert visits == [6, 6]
    log.flush()
    assert visits == [6, 6, 2] and steps(tmp_path) == [1, 2, 3, 4, 5, 6, 7]
    log.flush()
    assert visits == [6, 6, 2]


def test_the_caller_may_overwrite_its_tensors(tmp_path, events):
    loss = torch.tensor([1.0], requires_grad=True)
    total = (loss * 2).sum()
    buffer = torch.tensor(3.0)
    log = writer(tmp_path)
    log.training(line(1, loss=total, grad_norm=buffer))
    buffer.fill_(9.0)
    log.close()
    (record,) = read_metrics(tmp_path / METRICS_FILE)
    assert (record["loss"], record["grad_norm"]) == (2.0, 3.0)


def test_flush_puts_lines_on_the_disk(tmp_path, events, monkeypatch):
    synced = []
    monkeypatch.setattr(metrics.os, "fsync", lambda descriptor: synced.append(steps(tmp_path)))
    log = writer(tmp_path, log_every=100)
    log.training(line(1))
    synced.clear()
    log.flush()
    assert synced == [[1]]
    assert events.flushed == events.scalars != []


@pytest.mark.parametrize("ending", ["", '{"step": 6, "lo', "\x00\x00\x00", '{"step": 6}garbage'])
def test_a_resume_leaves_every_step_once(tmp_path, events, ending):
    undisturbed = writer(tmp_path / "undisturbed", log_every=1)
    for step in range(1, 9):
        undisturbed.training(line(step, loss=step / 7))
    undisturbed.validation(8, 0.25)
    undisturbed.close()

    killed = writer(tmp_path / "killed", log_every=1)
    for step in range(1, 6):
        killed.training(line(step, loss=step / 7))
    killed.validation(5, 99.0)
    killed.close()
    path = tmp_path / "killed" / METRICS_FILE
    with path.open("a") as file:
        file.write(ending)

    resumed = writer(tmp_path / "killed", log_every=1, resume_step=4)
    assert steps(tmp_path / "killed") == [1, 2, 3, 4]
    for step in range(5, 9):
        resumed.training(line(step, loss=step / 7))
    resumed.validation(8, 0.25)
    resumed.close()
    assert path.read_bytes() == (tmp_path / "undisturbed" / METRICS_FILE).read_bytes()
    assert sorted(file.name for file in path.parent.iterdir()) == [METRICS_FILE]


def test_a_half_line_goes_even_where_no_step_is_too_late(tmp_path, events):
    writer(tmp_path).close()
    (tmp_path / METRICS_FILE).write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}')
    writer(tmp_path, resume_step=2).close()
    # The half line parses, but nobody can know whether its last number was whole.
    assert (tmp_path / METRICS_FILE).read_text() == '{"step": 1, "loss": 0.5}\n'


def test_a_fresh_start_drops_everything(tmp_path, events):
    first = writer(tmp_path, log_every=1)
    first.training(line(1))
    first.close()
    writer(tmp_path, resume_step=0).close()
    assert steps(tmp_path) == []


def test_only_the_enabled_rank_writes(tmp_path, events, capfd):
    log = writer(tmp_path / "run", enabled=False)
    log.training(line(1))
    log.validation(1, 0.5)
    log.flush()
    log.close()
    assert not (tmp_path / "run").exists() and not events.scalars
    assert capfd.readouterr() == ("", "")


def test_progress_goes_to_stderr_with_the_time_left(tmp_path, events, capfd):
    log = writer(tmp_path, log_every=2)
    for step in (1, 2, 3):
        log.training(line(step))
    log.close()
    out, err = capfd.readouterr()
    assert out == ""
    # The third step comes within seconds of the second: a log file is spared its line.
    (only,) = err.splitlines()
    assert only.startswith("training: step 2/100  loss 0.1  grad_norm 1.5  lr 0.001  time left ")


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "is not there"),
        (b'{"step": 1}\nnot json\n{"step": 2}\n', "line 2 is not a metrics line"),
        (b"[1]\n", "line 1"),
    ],
)
def test_a_file_that_is_no_metrics_file_is_named(tmp_path, content, message):
    path = tmp_path / METRICS_FILE
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"metrics\.jsonl.*{message}"):
        read_metrics(path)


def test_reading_leaves_out_a_line_that_is_being_written(tmp_path):
    path = tmp_path / METRICS_FILE
    path.write_bytes(b'{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": 2.0}]


def test_tensorboard_sees_each_step_once_after_a_resume(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    killed = writer(tmp_path, log_every=1)
    for step in (1, 2, 3):
        killed.training(line(step, loss=float(step)))
    killed.close()
    resumed = writer(tmp_path, log_every=1, resume_step=1)
    for step in (2, 3, 4):
        resumed.training(line(step, loss=10.0 * step))
    resumed.close()
    shown = EventAccumulator(str(tmp_path / TENSORBOARD_FOLDER)).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in shown] == [(1, 1.0), (2, 20.0), (3, 30.0), (4, 40.0)]
