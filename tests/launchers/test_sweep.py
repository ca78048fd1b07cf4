"""`contentv sweep`: which points there are, that they really train, and that a second call goes on from the first."""

import csv
import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from contentv.engine import json_lines
from contentv.engine.config_yaml import to_yaml
from contentv.engine.grid import changed, parse_grid
from contentv.engine.restarts import Restarts
from contentv.engine.sent_jobs import SENT_FILE, QueuedJob
from contentv.engine.sweep import STRONG, WEAK, Sweep, note, prepare, status_of
from contentv.launchers import sweep
from tests.engine.small_run import small_config


@pytest.fixture
def base(shards, tmp_path):
    return small_config(tmp_path / "unused", shards)


@pytest.fixture
def recipe(base, tmp_path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(base))
    return path


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    from tests.engine.small_run import write_shards

    return write_shards(tmp_path_factory.mktemp("sweep") / "shards")


def swept(base, folder, **changes) -> Sweep:
    given = {"grid": {"parallel.tensor": ("1", "2")}, "worlds": (1, 2), "scaling": (STRONG, WEAK), "steps": 3}
    return Sweep(base=base, folder=folder, **(given | changes))


def test_points_are_the_grid_in_every_world_weak_and_strong(base, tmp_path):
    points = {point.name: point for point in swept(base, tmp_path).points()}
    assert list(points) == [
        "world-1.parallel.tensor-1", "world-1.parallel.tensor-2", "world-2.parallel.tensor-1",
        "world-2.parallel.tensor-2", "world-2.parallel.tensor-1.weak", "world-2.parallel.tensor-2.weak",
    ]  # fmt: skip
    assert points["world-1.parallel.tensor-1"].scaling == (STRONG, WEAK)
    assert points["world-1.parallel.tensor-2"].config is None
    assert "needs a multiple of 2" in points["world-1.parallel.tensor-2"].reason
    batches = {name: point.config.trainer.global_batch for name, point in points.items() if point.config}
    assert batches["world-2.parallel.tensor-1"] == 4 and batches["world-2.parallel.tensor-1.weak"] == 8
    config = points["world-2.parallel.tensor-2"].config
    assert (config.parallel.tensor, config.trainer.max_steps, config.trainer.validate_every) == (2, 3, 0)


def test_a_value_takes_the_type_of_its_key(base):
    new = changed(base, {"parallel.sequence": "True", "parallel.tensor": "2", "optimizer.learning_rate": "3e-4"})
    assert new.parallel.sequence is True and new.optimizer.learning_rate == 3e-4
    assert new == replace(
        base,
        parallel=replace(base.parallel, sequence=True, tensor=2),
        optimizer=replace(base.optimizer, learning_rate=3e-4),
    )


def test_a_sweep_trains_measures_and_goes_on(recipe, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    line = [recipe, "--grid", "parallel.tensor=2,3", "--world", "2", "--steps", "4", "--out", out, "--json"]
    line = [*map(str, line), "--trainer.micro-batch", "1"]
    assert sweep.main(line) == 0
    printed = capsys.readouterr()
    done, refused = json.loads(printed.out)
    assert re.search(r"1/2 world-2\S*: [\d.]+ s a step \(planned [\d.]+\), [\d,]+ tokens a second\n", printed.err)
    assert (done["status"], done["parallel.tensor"], done["world"], done["global_batch"]) == ("done", "2", 2, 4)
    assert done["seconds"] > 0 and done["tokens_per_second"] == pytest.approx(17 * 4 / done["seconds"], rel=0.5)
    assert 0 < done["predicted_seconds"] < 1 and refused["predicted_seconds"] is None
    assert refused["status"] == "refused" and "tensor" in refused["reason"] and refused["seconds"] is None
    with (out / "sweep.csv").open() as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["done", "refused"]
    assert (out / "scaling.png").read_bytes().startswith(b"\x89PNG")
    assert not (out / done["name"] / "checkpoints").exists()

    def never(*_, **__):
        raise AssertionError("a finished point was run again")

    monkeypatch.setattr(sweep, "_run", never)
    assert sweep.main(line) == 0
    again = json.loads(capsys.readouterr().out)
    assert again == [done, refused]


def test_what_became_of_a_point_is_read_from_its_folder(base, tmp_path):
    point = swept(base, tmp_path, worlds=(1,)).points()[0]
    assert status_of(point, dict).status == "open"
    prepare(point)
    note(point, "failed", "it died")
    assert (status_of(point, dict).status, status_of(point, dict).reason) == ("failed", "it died")
    (point.folder / "outcome.json").write_text('{"step": 2, "complete": false, "signal": null}')
    assert status_of(point, dict).status == "failed"
    (point.folder / "outcome.json").write_text('{"step": 3, "complete": true, "signal": null}')
    assert status_of(point, lambda folder: {"seconds": 1.0}).measured == {"seconds": 1.0}
    longer = replace(point, config=replace(point.config, trainer=replace(point.config.trainer, max_steps=99)))
    assert status_of(longer, dict).status == "open"  # the same name, another run


def is_alive_in(group: int, process: psutil.Process) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


def test_a_point_that_takes_too_long_fails_and_leaves_no_process(base, tmp_path, monkeypatch):
    started = []

    class Slow(sweep.subprocess.Popen):
        def __init__(self, command, **options):
            super().__init__(["bash", "-c", "sleep 600 & sleep 600"], **options)
            started.append(self)

    monkeypatch.setattr(sweep.subprocess, "Popen", Slow)
    point = swept(base, tmp_path, worlds=(1,)).points()[0]
    sweep._train(point, SimpleNamespace(limit=2.0))
    assert status_of(point, dict).reason == "took longer than --limit, 2 s"
    (child,) = started
    assert [each for each in psutil.process_iter() if is_alive_in(child.pid, each)] == []


def test_a_refusal_while_it_runs_is_no_failure(base, tmp_path):
    point = swept(base, tmp_path, worlds=(1,)).points()[0]
    prepare(point)
    sweep._note_failure(point, "noise\nerror: no such shards: encode them\nmore")
    assert (status_of(point, dict).status, status_of(point, dict).reason) == ("refused", "no such shards: encode them")
    sweep._note_failure(point, "Traceback: boom")
    assert (status_of(point, dict).status, status_of(point, dict).reason) == ("failed", "Traceback: boom")


def test_slurm_gets_a_launch_line_a_point_and_only_once(recipe, tmp_path, monkeypatch, capsys):
    lines = []
    monkeypatch.setattr(sweep.launch, "main", lambda line: lines.append(line) or 0)
    monkeypatch.setattr(sweep.slurm_queue, "is_here", lambda: False)
    line = [str(recipe), "--world", "1,4", "--scaling", "strong", "--out", str(tmp_path / "out"), "--slurm"]
    for _ in range(2):
        assert sweep.main([*line, "--devices-per-node", "2", "--json", "--trainer.micro-batch", "1"]) == 0
    assert [each[1:] for each in lines] == [
        ["--nodes", "1", "--devices-per-node", "1"],
        ["--nodes", "2", "--devices-per-node", "2"],
    ]
    assert all(Path(each[0]).name == "point.yaml" and Path(each[0]).is_file() for each in lines)
    records = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [record["status"] for record in records] == ["running", "running"]


@pytest.fixture
def queue(monkeypatch):
    """Job -> what Slurm says of it; a launch adds a job that waits."""
    states = {}

    def send(line):
        folder, job = Path(line[0]).parent, str(41 + len(states))
        Restarts(folder).launch()
        json_lines.append(folder / SENT_FILE, {"job": job, "script": "", "time": round(time.time(), 3)})
        states[job] = ("PENDING", "Resources")
        print(job)
        return 0

    def fate(job):
        state, reason = states.get(job, ("GONE", ""))
        if state == "DOWN":
            raise ValueError("squeue did not answer")
        return QueuedJob(job=job, state=state, reason=reason, remaining="")

    monkeypatch.setattr(sweep.launch, "main", send)
    monkeypatch.setattr(sweep.slurm_queue, "is_here", lambda: True)
    monkeypatch.setattr(sweep.slurm_queue, "fate", fate)
    return states


def test_what_died_in_the_queue_is_told_and_sent_again(recipe, tmp_path, queue, capsys):
    line = [str(recipe), "--world", "1,2", "--scaling", "strong", "--steps", "3", "--out", str(tmp_path / "out")]
    line += ["--slurm", "--json", "--trainer.micro-batch", "1"]

    def swept_again(status=0):
        assert sweep.main(line) == status
        return [(record["status"], record["reason"]) for record in json.loads(capsys.readouterr().out)]

    assert swept_again() == [("running", "in the queue")] * 2
    queue["42"] = ("RUNNING", "n1")
    assert swept_again() == [("running", "job 41 is PENDING: Resources"), ("running", "job 42 is RUNNING: n1")]
    queue["41"], queue["42"] = ("DOWN", ""), ("CANCELLED", "")
    assert swept_again(1) == [
        ("running", "squeue did not answer"),
        ("failed", "job 42 is CANCELLED: it began no attempt"),
    ]
    queue["41"] = ("PENDING", "Priority")
    assert swept_again()[1] == ("running", "in the queue") and list(queue) == ["41", "42", "43"]  # sent once more

    second = Restarts(tmp_path / "out" / "world-2")
    second.begin(job="43", nodes=["n1"], max_steps=3, budget=9)
    queue["43"] = ("NODE_FAIL", "")
    assert swept_again(1)[1] == ("failed", "job 43 is NODE_FAIL: no end recorded")
    assert swept_again()[1][0] == "running" and list(queue)[-1] == "44"
    second.begin(job="44", nodes=["n1"], max_steps=3, budget=9)
    second.end(2, status=2, reason="no such shards", max_steps=3, budget=9)
    queue["44"] = ("FAILED", "")
    assert swept_again(1)[1] == ("failed", "job 44 is FAILED: no such shards")


def test_a_point_that_became_complete_while_slurm_was_asked_is_done(base, tmp_path, queue, monkeypatch):
    point = swept(base, tmp_path, worlds=(1,)).points()[0]
    sweep._submit(point, SimpleNamespace(devices_per_node=1, launch=""))
    queue["41"] = ("COMPLETED", "")
    said = sweep.slurm_queue.fate

    def late(job):
        (point.folder / "outcome.json").write_text('{"step": 3, "complete": true, "signal": null}')
        return said(job)

    monkeypatch.setattr(sweep.slurm_queue, "fate", late)
    assert sweep.in_the_queue(status_of(point, lambda _: {"seconds": 1.0}), lambda _: {"seconds": 1.0}).status == "done"


def test_a_point_that_was_never_sent_is_sent_by_the_command_after(base, tmp_path, queue):
    point = swept(base, tmp_path, worlds=(1,)).points()[0]
    prepare(point)
    note(point, "running", "in the queue")  # and then the command was killed
    row = sweep.in_the_queue(status_of(point, dict), dict)
    assert (row.status, row.reason) == ("failed", "no job was sent")


def test_without_slurm_nothing_is_said_of_a_job(base, tmp_path, queue, monkeypatch):
    point = swept(base, tmp_path, worlds=(1,)).points()[0]
    sweep._submit(point, SimpleNamespace(devices_per_node=1, launch=""))
    queue["41"] = ("GONE", "")
    monkeypatch.setattr(sweep.slurm_queue, "is_here", lambda: False)
    assert sweep.in_the_queue(status_of(point, dict), dict).status == "running"


@pytest.mark.parametrize("options, words", [
    (["--grid", "parallel.tenser=1,2"], "did you mean parallel.tensor"),
    (["--grid", "parallel.tensor=1", "--grid", "parallel.tensor=2"], "is there twice"),
    (["--grid", "parallel.tensor="], "values are missing"),
    (["--grid", "parallel.tensor=one"], "must be a whole number"),
    (["--grid", "run.folder=a,b"], "there is no key 'run.folder'"),
    (["--world", "0"], "--world is 0"),
    (["--world", "one"], "--world is one"),
    (["--steps", "0"], "--steps is 0"),
    (["--grid", "parallel.tensor=7"], "no point of this grid is possible"),
])  # fmt: skip
def test_mistakes_are_refused_before_anything_starts(options, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sweep.main(["quickstart", *options]) == 2
    printed = capsys.readouterr()
    assert words in printed.err and printed.out == "" and not list(tmp_path.iterdir())


def test_a_grid_keeps_the_order_it_was_given_in(base):
    grid = parse_grid(["trainer.micro-batch=2,1,2", "parallel.tensor=1"], base)
    assert grid == {"trainer.micro_batch": ("2", "1"), "parallel.tensor": ("1",)}
