"""`contentv status`, `logs` and `stop` from a run folder alone, with a real local run to stop."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from contentv.engine import heartbeats
from contentv.engine.config_yaml import CONFIG_FILE, save
from contentv.engine.restarts import Restarts
from contentv.engine.run_files import LOGS_FOLDER, METRICS_FILE, OUTCOME_FILE, RESTARTS_FILE, STOP_FILE
from contentv.engine.sent_jobs import SENT_FILE, QueuedJob
from contentv.launchers import logs, slurm_queue, status, stop
from contentv.launchers.command_line import starting_point
from contentv.parallel.sighting import Sighting
from tests.engine.small_run import write_shards

PATIENCE = 120


@pytest.fixture
def folder(tmp_path):
    """Two attempts: one that was killed, one under way."""
    restarts = Restarts(tmp_path)
    assert restarts.begin(job="7", nodes=["n1", "n2"], max_steps=40, budget=9) == 1
    restarts.end(1, status=137, reason="rank 3 on n2: Killed", max_steps=40, budget=9)
    assert restarts.begin(job="7", nodes=["n1", "n3"], max_steps=40, budget=9) == 2
    lines = [{"step": step, "loss": 2.0, "seconds": 0.5} for step in (1, 2, 3)]
    (tmp_path / METRICS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    for attempt in (1, 2):
        place = tmp_path / LOGS_FOLDER / f"attempt-{attempt}"
        place.mkdir(parents=True)
        for rank in range(2):
            (place / f"rank-{rank}.log").write_text(f"attempt {attempt}, rank {rank}\n")
    return tmp_path


def beat(folder: Path) -> None:
    """Four ranks, of which the last has not been heard of for a minute and the third is slow."""
    now = time.time()
    ranks = [
        Sighting(rank=rank, step=3, phase="update", place="barrier", waits=True, computing=0.9 if rank == 2 else 0.3,
                 published=now - (60 if rank == 3 else 0), host="n1", process=0)
        for rank in range(4)
    ]  # fmt: skip
    heartbeats.write(folder, ranks)


def told(capsys, command, *arguments) -> str:
    assert command.main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_status_says_how_it_goes_and_whom_it_waits_for(folder, capsys):
    beat(folder)
    said = told(capsys, status, folder)
    assert f"{folder}: running" in said and "step 3, last checkpoint 0, loss 2, 0.500 s a step" in said
    assert "goodput " in said and " over 2 attempts: steps that count took 2 s of " in said
    assert "attempt 1 job 7 on n1, n2, from step 0 to step 0: rank 3 on n2: Killed" in said
    assert "slow: rank 2 computes 3.0 x" in said and "silent: rank 3 silent for 60 s, last seen at step 3" in said
    found = json.loads(told(capsys, status, folder, "--json"))
    assert (found["state"], found["step"], len(found["attempts"]), found["jobs"]) == ("running", 3, 2, [])
    assert found["goodput"]["kept_seconds"] == 1.5


def test_status_and_logs_answer_without_torch(folder):
    code = (
        "import sys; from contentv.launchers import logs, status, stop; "
        "assert status.main(sys.argv[1:]) == logs.main(sys.argv[1:]) == stop.main(sys.argv[1:]) == 0; "
        "assert not {'torch', 'megatron', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_status_knows_an_end_from_a_death(folder, capsys):
    beat(folder)
    restarts_file = folder / RESTARTS_FILE
    (folder / OUTCOME_FILE).write_text(json.dumps({"step": 0, "complete": False, "signal": "SIGUSR1"}))
    Restarts(folder).end(2, status=75, reason="", max_steps=40, budget=9)
    assert "not running, asked to stop, saved step 0" in told(capsys, status, folder)
    # What the ranks of the attempt before said last, however long ago, is no word of those that start now.
    old = json.loads((folder / "heartbeats.json").read_text())
    (folder / "heartbeats.json").write_text(json.dumps({**old, "time": time.time() - 3600}))
    Restarts(folder).begin(job="7", nodes=["n1"], max_steps=40, budget=9)
    assert "running, attempt 3 starts" in told(capsys, status, folder)
    # Nothing is known of an attempt whose node died: its heartbeats, if it had any, only grow old.
    text, started = restarts_file.read_text(), Restarts(folder).attempts()[-1].started
    restarts_file.write_text(text.replace(str(started), str(started - 3600)))
    assert "no heartbeat for 3600 s and no word of an end" in told(capsys, status, folder)
    restarts_file.write_text(text.replace(str(started), str(started - 7200)))
    assert "no heartbeat for 3600 s and no word of an end" in told(capsys, status, folder)
    (folder / OUTCOME_FILE).write_text(json.dumps({"step": 40, "complete": True, "signal": None}))
    Restarts(folder).end(3, status=0, reason="", max_steps=40, budget=9)
    assert f"{folder}: complete" in told(capsys, status, folder)


def sent(folder, *jobs: tuple[str, str, str]) -> list[QueuedJob]:
    """A launch after the two attempts, and what Slurm says of its jobs."""
    Restarts(folder).launch()
    with (folder / SENT_FILE).open("a") as file:
        file.writelines(
            json.dumps({"job": job, "script": "", "time": round(time.time(), 3)}) + "\n" for job, *_ in jobs
        )
    return [QueuedJob(job=job, state=state, reason=reason, remaining="10:00") for job, state, reason in jobs]


@pytest.mark.parametrize(
    ("jobs", "state", "words"),
    [
        ([("9", "PENDING", "Resources")], "pending", "job 9 is PENDING: Resources; attempt 2 before it: it died"),
        ([("9", "RUNNING", "n4"), ("10", "PENDING", "Dependency")], "starting", "job 9 is RUNNING on n4; attempt 2 b"),
        ([("9", "CANCELLED", "None")], "failed", "job 9 is CANCELLED and began no attempt, see "),
        ([], "not started", "launched again; attempt 2 before it: it died"),
    ],
)
def test_after_a_launch_the_old_end_is_that_of_the_attempt_before(folder, capsys, monkeypatch, jobs, state, words):
    Restarts(folder).end(2, status=1, reason="it died", max_steps=40, budget=9)
    assert f"{folder}: not running, it died\n" in told(capsys, status, folder)
    known = {job.job: job for job in sent(folder, *jobs)}
    monkeypatch.setattr(slurm_queue, "fate", known.__getitem__)  # asked for those of this launch alone
    said = told(capsys, status, folder)
    assert f"{folder}: {state}, {words}" in said and "attempt 2 job 7 on n1, n3, from step 0 to step 0: it died" in said
    assert all(f"job {job}: {how}, {why}" in said for job, how, why in jobs)


def test_a_run_that_waits_to_be_requeued_is_pending_and_one_under_way_is_not(folder, capsys, monkeypatch):
    (job,) = sent(folder, ("7", "PENDING", "BeginTime"))
    monkeypatch.setattr(slurm_queue, "fate", lambda _: job)
    Restarts(folder).begin(job="7", nodes=["n1"], max_steps=40, budget=9)
    Restarts(folder).end(3, status=75, reason="", max_steps=40, budget=9)
    said = told(capsys, status, folder)
    assert "pending, job 7 is PENDING: BeginTime; attempt 3 before it: asked to stop" in said
    job = replace(job, state="RUNNING", reason="n1")
    assert "starting, job 7 is RUNNING on n1" in told(capsys, status, folder)
    Restarts(folder).begin(job="7", nodes=["n1"], max_steps=40, budget=9)
    assert "running, attempt 4 starts" in told(capsys, status, folder)
    (folder / STOP_FILE).write_text("{}")
    Restarts(folder).end(4, status=75, reason="", max_steps=40, budget=9)
    assert f"{folder}: stopped, stopped on request" in told(capsys, status, folder)


def test_a_larger_goal_is_that_of_the_new_launch(folder, capsys):
    config = starting_point("quickstart")
    save(replace(config, trainer=replace(config.trainer, max_steps=40)), folder)
    (folder / OUTCOME_FILE).write_text(json.dumps({"step": 40, "complete": True, "signal": None}))
    Restarts(folder).end(2, status=0, reason="", max_steps=40, budget=9)
    assert f"{folder}: complete, at step 40" in told(capsys, status, folder)
    later = folder / "jobs" / "1"
    later.mkdir(parents=True)
    save(replace(config, trainer=replace(config.trainer, max_steps=80)), later)
    os.utime(folder / CONFIG_FILE, (0, 0))
    sent(folder, ("9", "PENDING", "Priority"))
    said = told(capsys, status, folder)
    assert f"{folder}: not started, launched again; attempt 2 before it: complete at step 0" in said and "of 80" in said


def test_many_nodes_and_many_silent_ranks_fit_on_a_screen(tmp_path, capsys):
    restarts, now = Restarts(tmp_path), time.time()
    for attempt in range(1, 8):
        restarts.begin(job="7", nodes=[f"n{node:03}" for node in range(32)], max_steps=40, budget=9)
        if attempt < 7:
            restarts.end_for_nodes(attempt, ["n031"], go_on=True, budget=9)
    heartbeats.write(tmp_path, [
        Sighting(rank=rank, step=3, phase="update", place="barrier", waits=True, computing=0.3, published=now - 60 * (
            rank > 7), host="n1", process=0) for rank in range(256)
    ])  # fmt: skip
    said = told(capsys, status, tmp_path).splitlines()
    assert "the last 5 of 7 attempts:" in said and "silent: and 243 more; --json has all" in said
    assert "attempt 7 job 7 on n000 to n031 (32 nodes), from step 0 no end recorded" in said
    assert len(said) < 20 and max(map(len, said)) <= 120


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    for command in (status, stop):
        assert command.main([str(tmp_path)]) == 2 and "holds no run" in capsys.readouterr().err
    assert logs.main([str(tmp_path)]) == 2 and "has no logs" in capsys.readouterr().err


GARBAGE = (
    '{"event": "end", "attempt": 9}\n',
    "[1, 2]\n",
    "null\n",
    "\0\xff\n",
    '{"time": "soon", "ranks": [{}]}\n',
    "",
)


@pytest.mark.parametrize("name", ["restarts.jsonl", "jobs.jsonl", "metrics.jsonl", "heartbeats.json", "outcome.json"])
def test_what_a_failing_disk_left_is_passed_over(folder, capsys, name):
    beat(folder)
    kept = (folder / name).read_text() if name.endswith("l") and (folder / name).exists() else ""
    for text in GARBAGE:
        (folder / name).write_text(kept + text, encoding="latin-1")
        assert f"{folder}: " in told(capsys, status, folder), text


def test_logs_are_those_of_the_latest_attempt_or_of_the_one_asked_for(folder, capsys):
    assert told(capsys, logs, folder, "--rank", 1) == "attempt 2, rank 1\n"
    assert told(capsys, logs, folder, "--rank", 1, "--attempt", 1) == "attempt 1, rank 1\n"
    assert logs.main([str(folder), "--rank", "5"]) == 2 and "ranks 0 to 1 are there" in capsys.readouterr().err
    assert logs.main([str(folder), "--attempt", "9"]) == 2 and "of attempt 9" in capsys.readouterr().err


def test_followed_logs_go_over_to_the_next_attempt_and_end_with_the_run(folder):
    command = [sys.executable, "-m", "contentv.launchers.logs", str(folder), "--follow"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as follower:
        try:
            assert follower.stdout.readline() == "attempt 2, rank 0\n"
            with (folder / LOGS_FOLDER / "attempt-2" / "rank-0.log").open("a") as file:
                file.write("more\n")
            assert follower.stdout.readline() == "more\n"
            restarts = Restarts(folder)
            restarts.end(2, status=75, reason="", max_steps=40, budget=9)
            restarts.begin(job="7", nodes=["n1"], max_steps=40, budget=9)
            place = folder / LOGS_FOLDER / "attempt-3"
            place.mkdir()
            (place / "rank-0.log").write_text("attempt 3\n")
            assert follower.stdout.readline() == "attempt 3\n"
            (folder / STOP_FILE).write_text("{}")
            restarts.end(3, status=75, reason="", max_steps=40, budget=9)
            assert follower.wait(timeout=PATIENCE) == 0 and follower.stdout.read() == ""
        finally:
            follower.kill()


def test_stop_of_nothing_says_so(folder, capsys):
    beat(folder)
    old = json.loads((folder / "heartbeats.json").read_text())
    (folder / "heartbeats.json").write_text(json.dumps({**old, "time": time.time() - 3600}))
    assert "nothing of it is running" in told(capsys, stop, folder)


def test_a_run_of_this_machine_saves_and_ends(tmp_path, capsys):
    run, shards = tmp_path / "run", write_shards(tmp_path / "shards")
    options = ["quickstart", "--model.layers", "2", "--model.heads", "2", "--model.head-width", "16"]
    options += ["--model.text-width", "24", "--model.pooled-width", "24", "--data.folder", str(shards)]
    options += ["--run.folder", str(run), "--trainer.max-steps", "100000", "--trainer.checkpoint-every", "100000"]
    options += ["--trainer.log-every", "1", "--trainer.validate-every", "0"]
    with subprocess.Popen(
        [sys.executable, "-m", "contentv.launchers.train", *options],
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CONTENTV_DEVICE": "cpu"},
    ) as process:
        try:
            deadline = time.monotonic() + PATIENCE
            while not (run / "heartbeats.json").exists():
                assert process.poll() is None and time.monotonic() < deadline, "no heartbeat"
                time.sleep(0.05)
            assert "running" in told(capsys, status, run)
            assert heartbeats.read(run).ranks[0].process == process.pid
            said = told(capsys, stop, run, "--wait", PATIENCE)
            assert process.wait(timeout=PATIENCE) == 75
        finally:
            process.kill()
    step = Restarts(run).checkpoint_step()
    assert step > 0 and f"the last checkpoint is that of step {step}" in said.replace("its last", "the last")
    assert "not running" in told(capsys, status, run)
