"""A run's life on a real Slurm: everything that ends a job early, and what becomes of the run.

The cluster is one machine: what a real one adds (file systems that lag, networks that part) is not seen here.
"""

import contextlib
import json
import os
import signal
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from contentv.engine.circumstances import circumstances
from contentv.engine.node_verdict import MARK
from contentv.engine.restarts import Restarts
from contentv.engine.run_files import LOGS_FOLDER
from contentv.engine.sent_jobs import sent_jobs
from tests.slurm.cluster import NODES, ask, tell, until
from tests.slurm.drill import ENDLESS, EVERY, contentv, state, steps, take_nodes

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1500)]
RESULTS = "DRILL_RESULTS"
"""Environment variable: a file that keeps the goodput of the drill."""


def test_a_run_that_is_killed_loses_a_node_is_preempted_and_runs_out_of_time_repeats_every_bit(drill, calm):
    # Slurm looks at time limits twice a minute: so it has no end, but the one that it is asked for.
    job = drill.launch("--save-ahead", "120", steps=ENDLESS)
    drill.wait_for_step(1, EVERY + 3)
    drill.strike(3, signal.SIGKILL)
    killed = drill.wait_for_end(1)
    assert killed.reason.startswith("rank 3 on n") and "Killed" in killed.reason and killed.next == "again"

    drill.until(lambda: len(drill.attempts()) == 2, "second attempt")
    drill.wait_for_step(2, drill.attempts()[1].first_step + 3)
    node = drill.attempts()[1].nodes[1]
    tell("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=drill")
    # Slurm requeues it by itself.
    drill.until(lambda: len(drill.attempts()) == 3, "third attempt, after a node went down")
    third = drill.attempts()[2]
    assert node not in third.nodes and third.first_step >= killed.last_step

    drill.wait_for_step(3, third.first_step + 3)
    urgent = take_nodes("urgent", third.nodes, 600)
    preempted = drill.wait_for_end(3)
    assert preempted.status == 75 and preempted.next == "again" and preempted.last_step > third.first_step
    drill.until(lambda: state(urgent) == "RUNNING", "job that preempts")
    assert state(job) == "PENDING"
    tell("scancel", urgent)
    tell("scontrol", "update", f"NodeName={node}", "State=RESUME")

    drill.until(lambda: len(drill.attempts()) == 4, "fourth attempt")
    fourth = drill.attempts()[3]
    assert fourth.first_step == preempted.last_step  # the exact step at which it was asked
    drill.wait_for_step(4, fourth.first_step + 3)
    # As if its ten minutes were nearly over: Slurm warns it by itself.
    tell("scontrol", "update", f"JobId={job}", "TimeLimit=2")
    warned = drill.wait_for_end(4)
    assert (warned.status, warned.next) == (75, "again") and warned.last_step > fourth.first_step + 3
    assert "asked to stop, saved step" in warned.reason
    drill.until(lambda: state(job) == "PENDING", "requeued job")
    tell("scontrol", "update", f"JobId={job}", "TimeLimit=10")

    drill.until(lambda: len(drill.attempts()) == 5, "fifth attempt")
    fifth = drill.attempts()[4]
    assert fifth.first_step == warned.last_step
    drill.wait_for_step(5, fifth.first_step + EVERY)
    assert "ended, its last checkpoint" in contentv("stop", str(drill.folder))
    disturbed = steps(drill.folder)
    assert [line[0] for line in disturbed] == list(range(1, drill.attempts()[4].last_step + 1)), drill.told()
    assert calm(len(disturbed)) == disturbed
    keep(Restarts(drill.folder).goodput())


def keep(goodput: dict) -> None:
    print(f"\ngoodput of the drill: {json.dumps(goodput)}")
    if path := os.environ.get(RESULTS):
        told = "four interruptions of a run of two virtual nodes x 2 ranks; starts of half a minute dwarf its steps"
        record = {"what": told, **goodput, **asdict(circumstances(torch.device("cpu")))}
        Path(path).write_text(json.dumps(record, indent=2) + "\n")


def test_a_stuck_rank_is_named_and_the_run_can_be_stopped_while_it_starts_again(drill):
    job = drill.launch("--parallel.timeout-seconds", "8", nodes=1, steps=ENDLESS)
    drill.wait_for_step(1, 3)
    stuck = drill.hold_until_end(1, [drill.rank_process(1)])
    assert stuck.next == "again" and "no progress for 8 s at step" in stuck.reason
    assert (
        "rank 1 silent for" in stuck.reason
        and "last seen at step" in stuck.reason
        and "rank 0 waits in" in stuck.reason
    )

    drill.until(lambda: len(drill.attempts()) == 2, "second attempt")
    said = contentv("stop", str(drill.folder))
    assert "ended, its last checkpoint is that of step" in said
    assert drill.wait_until_over(job) in ("FAILED", "COMPLETED") and drill.attempts()[-1].next == "stop"
    status = json.loads(contentv("status", str(drill.folder), "--json"))
    assert status["state"] == "stopped" and "on request" in status["why"] and len(status["attempts"]) == 2
    assert "resumes" in contentv("logs", str(drill.folder), "--attempt", "1") or "starts" in contentv(
        "logs", str(drill.folder), "--attempt", "1"
    )


@pytest.fixture
def small_disk(drill):
    """Checkpoints on a disk of some MiB; yields a function that fills it, and one that makes room."""
    folder, ballast = drill.folder / "checkpoints", drill.folder / "checkpoints" / "ballast"
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], check=True)

    def fill() -> None:
        # To the last byte, whatever a checkpoint on its way takes meanwhile.
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(b"\1" * 2**16):
                pass

    yield fill, ballast.unlink
    drill.end()
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_said_the_last_checkpoint_stands_and_room_is_all_it_needs(drill, small_disk):
    fill, make_room = small_disk
    job = drill.launch("--trainer.keep-checkpoints", "0", nodes=1, ranks=1, tensor=1, steps=300)
    drill.wait_for_step(1, EVERY + 3)
    fill()
    full = drill.wait_for_end(1)
    assert "No space left" in full.reason and full.next == "again" and full.last_step >= EVERY
    make_room()
    drill.until(lambda: len(drill.attempts()) == 2, "second attempt")
    assert drill.attempts()[1].first_step == full.last_step
    assert drill.wait_until_over(job) == "COMPLETED", drill.told()
    assert [line[0] for line in steps(drill.folder)] == list(range(1, 301))


def test_a_chain_goes_on_where_the_link_before_was_preempted_and_where_its_time_is_over(drill):
    first = drill.launch("--chain", "3", "--save-ahead", "60", nodes=1, ranks=1, tensor=1, steps=ENDLESS)
    _, second, third = drill.jobs
    drill.wait_for_step(1, 3)
    assert state(second) == state(third) == "PENDING"
    urgent = take_nodes("urgent", NODES, 600)
    preempted = drill.wait_for_end(1)
    drill.until(lambda: state(urgent) == "RUNNING", "job that preempts")
    # It waits itself, and no other link overtakes it.
    assert (preempted.status, state(first)) == (75, "PENDING")
    assert ask("squeue", "-h", "-j", second, "-o", "%T %R") == "PENDING (Dependency)"
    tell("scancel", urgent)
    drill.until(lambda: len(drill.attempts()) == 2, "second attempt")
    one, two = drill.attempts()
    assert (two.job, two.first_step) == (first, one.last_step) and state(second) == state(third) == "PENDING"
    drill.wait_for_step(2, two.first_step + 3)
    # As if its ten minutes were nearly over: Slurm warns it by itself.
    tell("scontrol", "update", f"JobId={first}", "TimeLimit=1")
    assert drill.wait_until_over(first) == "FAILED"  # with status 75: it is not finished, and not requeued
    drill.until(lambda: len(drill.attempts()) == 3, "second link")
    _, two, three = drill.attempts()
    assert (two.job, two.status, three.job) == (first, 75, second) and three.first_step == two.last_step
    drill.wait_for_step(3, three.first_step + 1)
    assert "ended, its last checkpoint" in contentv("stop", str(drill.folder))
    # The link that still waited does not begin.
    assert drill.wait_until_over(third) == "CANCELLED" and len(drill.attempts()) == 3
    last = drill.attempts()[2]
    assert last.next == "stop" and last.last_step > three.first_step
    # Over all links every step was made, and counts once.
    assert [line[0] for line in steps(drill.folder)] == list(range(1, last.last_step + 1))


def test_a_point_that_dies_in_the_queue_is_told_and_sent_again(drill):
    size = ["--model.layers", "2", "--trainer.micro-batch", "4", "--data.folder", str(drill.shards), "--steps", "3"]
    queue = ["--slurm", "--devices-per-node", "1", "--launch", "--device cpu --time 10 --sbatch hold"]
    line = ["quickstart", *size, *queue, "--out", str(drill.folder), "--json"]
    run = drill.folder / "world-1"
    assert json.loads(contentv("sweep", *line))[0]["status"] == "running"
    for attempt in (1, 2):
        drill.jobs = sent_jobs(run)
        job = drill.jobs[-1]
        assert len(drill.jobs) == attempt
        (point,) = json.loads(contentv("sweep", *line))
        assert (point["status"], point["reason"]) == ("running", f"job {job} is PENDING: JobHeldUser")
        assert f"{run}: pending, job {job} is PENDING: JobHeldUser" in contentv("status", str(run))
        tell("scancel", job)
        drill.until(lambda job=job: state(job) == "CANCELLED", "cancelled job")
        (point,) = json.loads(contentv("sweep", *line, check=1))
        assert (point["status"], point["reason"]) == ("failed", f"job {job} is CANCELLED: it began no attempt")
        assert f"{run}: failed, job {job} is CANCELLED and began no attempt" in contentv("status", str(run))
        (point,) = json.loads(contentv("sweep", *line))
        assert point["status"] == "running"
    drill.jobs = sent_jobs(run)
    tell("scancel", drill.jobs[-1])


def test_a_sweep_is_one_array_and_a_point_that_always_fails_is_given_up(drill):
    rates = ["--grid", "optimizer.learning-rate=1e-3,1e30"]
    drill.launch(*rates, nodes=1, ranks=1, tensor=1, steps=20)
    good, bad = (drill.folder / f"optimizer.learning_rate={rate}" for rate in ("1e-3", "1e30"))
    both = [Restarts(folder) for folder in (good, bad)]
    drill.until(lambda: all(r.attempts() and r.attempts()[-1].next in ("complete", "stop") for r in both), "both ends")
    assert [attempt.next for attempt in both[0].attempts()] == ["complete"]
    assert [attempt.next for attempt in both[1].attempts()] == ["again", "again", "stop"]
    said = both[1].attempts()[-1].reason
    assert "crash loop: 3 attempts" in said and "is not finite" in said
    assert "stopped" in contentv("status", str(bad))


def test_a_node_that_lost_its_device_is_named_and_left_out(drill, slurm):
    lost = slurm / "lost-n1"
    lost.touch()
    try:
        job = drill.launch("--node-check", "exclude", nodes=2, ranks=1, tensor=1, steps=20)
        found = drill.wait_for_end(1)
        assert found.bad_nodes == ("n1",) and found.next == "again"
        assert drill.wait_until_over(job) == "COMPLETED", drill.told()
    finally:
        lost.unlink()
    assert "n1" not in drill.attempts()[-1].nodes and len(drill.attempts()) == 2
    said = next((drill.folder / LOGS_FOLDER).glob("job-*.log")).read_text()
    assert "n1 is bad: rank 0: CONTENTV_DEVICE is cuda, but this torch sees no CUDA device" in said


def test_a_node_check_in_which_every_rank_hangs_has_an_end_of_its_own(drill):
    options = ["--node-check", "exclude", "--node-check-limit", "1"]
    job = drill.launch(*options, nodes=2, ranks=1, tensor=1, steps=20)
    logs = drill.folder / LOGS_FOLDER / "attempt-1"
    hanging = []
    for rank in (0, 1):
        drill.until(lambda rank=rank: list(logs.glob(f"{MARK}{rank}-*")), f"rank {rank} that asks its device")
        hanging.append(drill.rank_process(rank, "node_check"))
        os.kill(hanging[-1], signal.SIGSTOP)
    # Slurm wakes a stopped process before it asks it to end; one whose device hangs does not wake.
    hung = drill.hold_until_end(1, hanging)
    # Slurm looks at the limits of steps twice a minute; the job's own is ten minutes.
    assert hung.ended - hung.started < 300 and (hung.status, hung.next, hung.bad_nodes) == (1, "again", ())
    assert hung.reason.startswith("the node check did not end within 1 min: ") and all(
        f"on {node} the device of rank {rank} did not answer" in hung.reason for rank, node in enumerate(hung.nodes)
    )
    assert drill.wait_until_over(job) == "COMPLETED", drill.told()
    assert len(drill.attempts()) == 2


def test_a_job_that_is_cancelled_does_not_come_back(drill):
    job = drill.launch(nodes=1, ranks=1, tensor=1, steps=ENDLESS)
    drill.wait_for_step(1, 3)
    tell("scancel", job)
    assert drill.wait_until_over(job) == "CANCELLED"
    until(lambda: drill.attempts()[-1].ended, 30, "word of its end")
    assert drill.attempts()[-1].status == 75 and drill.attempts()[-1].last_step >= 3  # and it had saved
