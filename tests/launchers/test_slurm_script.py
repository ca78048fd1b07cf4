"""The job's script in bash, with the real bookkeeping: what it asks Slurm for after each end.

srun, squeue and scontrol are as small as the script needs them; the drills of tests/slurm ask the real ones.
"""

import os
import shlex
import signal
import subprocess
from dataclasses import replace

import pytest

from contentv.engine.config_yaml import to_yaml
from contentv.engine.restarts import Restarts
from contentv.launchers import grid, launch, slurm_script

LIMIT = 60
"""Seconds that a script may take."""
PROGRAMS = {
    # What each step does is a test's affair; the first one asks for rank 0's node.
    "srun": """case "$*" in
*SLURM_PROCID*) echo "$FIRST" ;;
*launchers.train*) eval "$TRAIN" ;;
*launchers.node_check*) logs=${!#}; eval "$CHECK" ;;
esac""",
    "squeue": """case "$*" in
*%x*) echo "$EXCLUDED" ;;
*) [ -n "$STATE" ] && echo "$STATE" ;;
esac""",
    "scontrol": """case "$1 $2" in
"show hostnames") echo "$3" ;;
"show node") echo "   NodeAddr=10.0.0.1 NodeHostName=$3" ;;
*) echo "$@" >> "$CALLS"; [ -z "$REFUSED" ] ;;
esac""",
}


@pytest.fixture
def programs(tmp_path):
    folder = tmp_path / "programs"
    folder.mkdir()
    for name, text in PROGRAMS.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def run_script(tmp_path, programs):
    """Runs the script once; returns its exit status, what it said, and what it told scontrol to do."""

    def run(*options: str, is_last: bool = True, **changes: str) -> tuple[int, str, list[str]]:
        given, _ = launch.parse(["--nodes", "1", "--devices-per-node", "1", "--device", "cpu", *options])
        config = launch.starting_point("quickstart")
        points = [replace(point, run=tmp_path / "run") for point in grid.points_of(config, [])]
        jobs = launch.Jobs(given, points, tmp_path / "run")
        jobs.folder.mkdir(parents=True, exist_ok=True)
        (jobs.folder / "config.yaml").write_text(to_yaml(config))
        Restarts(tmp_path / "run").launch()
        calls = tmp_path / "calls"
        calls.write_text("")
        world = {"FIRST": "n1", "TRAIN": "exit 1", "CHECK": "", "EXCLUDED": "(null)", "STATE": "RUNNING", "REFUSED": ""}
        world |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "CALLS": str(calls), **changes}
        path = f"{programs}:{os.environ['PATH']}"
        done = subprocess.run(["bash", "-c", jobs.text(1, is_last=is_last)], capture_output=True, text=True,
                              env=os.environ | world | {"PATH": path}, timeout=LIMIT)  # fmt: skip
        return done.returncode, done.stderr, calls.read_text().splitlines()

    return run


OFF = ("--node-check", "off")


def test_what_failed_goes_back_into_the_queue(run_script):
    assert run_script(*OFF)[0::2] == (1, ["requeue 7"])


def test_a_job_of_which_squeue_says_nothing_is_not_requeued(run_script):
    status, said, calls = run_script(*OFF, STATE="")
    assert (status, calls) == (1, []) and "job 7 could not be requeued" in said


def test_a_requeue_that_slurm_refuses_is_told(run_script):
    status, said, calls = run_script(*OFF, REFUSED="yes")
    assert (status, calls) == (1, ["requeue 7"]) and "job 7 could not be requeued; contentv launch again" in said


def test_a_job_that_is_cancelled_is_left_alone(run_script):
    status, said, calls = run_script(*OFF, STATE="CANCELLED")
    assert calls == [] and "could not be requeued" not in said


@pytest.mark.parametrize(
    ("train", "requeued"),
    [
        ("exit 75", True),
        ("kill -USR1 $PPID; sleep 30", False),
        ("kill -TERM $PPID; sleep 30", True),  # preempted: its time is not over
        # The time limit itself, after its warning. (Of two signals at once bash's wait may lose one.)
        ("trap '' USR1; kill -USR1 $PPID; sleep 1; kill -TERM $PPID; sleep 1; exit 75", False),
    ],
)
def test_a_link_that_is_out_of_time_leaves_the_rest_to_the_next(run_script, tmp_path, train, requeued):
    _, said, calls = run_script(*OFF, is_last=False, TRAIN=train)
    assert calls == (["requeue 7"] if requeued else []), said
    assert Restarts(tmp_path / "run").attempts()[-1].status == 75


def test_a_preempted_link_that_slurm_does_not_requeue_leaves_the_rest_to_the_next(run_script):
    status, said, calls = run_script(*OFF, is_last=False, TRAIN="kill -TERM $PPID; sleep 30", REFUSED="yes")
    assert (status, calls) == (138, ["requeue 7"]) and "the next job of the chain goes on instead" in said


def test_without_rank_0s_address_no_rank_starts(run_script, tmp_path):
    status, said, calls = run_script(*OFF, FIRST="", TRAIN=f"touch {tmp_path / 'trained'}")
    assert (status, calls) == (1, []) and "does not say where rank 0's node is (no name)" in said
    assert not (tmp_path / "trained").exists()


BAD = """echo '{"node": "n1", "rank": 0, "error": "gone"}' > "$logs/node_check-figures-0.json"; exit 1"""


@pytest.mark.parametrize(("excluded", "then"), [("(null)", "n1"), ("n[7-9]", "n1,n[7-9]")])
def test_a_bad_node_is_left_out_beside_those_that_the_user_left_out(run_script, excluded, then):
    status, said, calls = run_script(CHECK=BAD, EXCLUDED=excluded)
    assert (status, calls) == (1, ["requeue 7", f"update JobId=7 ExcNodeList={then}"]), said


# Two ranks of the one node: one of them has come to its device, none has measured anything.
HANGS = """touch "$logs/node_check-began-0-n1"; exit 143"""


def test_a_check_in_which_all_hang_ends_the_attempt_with_their_names(run_script, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "CHECK_MINUTES", 0)  # as if they were over
    status, said, calls = run_script("--devices-per-node", "2", CHECK=HANGS, TRAIN=f"touch {tmp_path / 'trained'}")
    assert (status, calls) == (1, ["requeue 7"]) and not (tmp_path / "trained").exists(), said
    attempt = Restarts(tmp_path / "run").attempts()[-1]
    assert (attempt.status, attempt.next, attempt.bad_nodes) == (1, "again", ()) and attempt.reason == (
        "the node check did not end within 0 min: on n1 the device of rank 0 did not answer; "
        "on n1 1 of 2 ranks did not come as far as their device"
    )
    # It is a failure as any other: the third in a row is the last.
    assert run_script("--devices-per-node", "2", CHECK=HANGS)[0::2] == (1, ["requeue 7"])


def test_a_check_that_ended_in_time_is_no_hang(run_script, tmp_path):
    run_script(CHECK=HANGS, TRAIN=f"touch {tmp_path / 'trained'}")
    assert (tmp_path / "trained").exists()


def test_the_check_alone_has_slurms_limit(run_script, programs, tmp_path):
    seen = tmp_path / "seen"
    text = (programs / "srun").read_text()
    (programs / "srun").write_text(text.replace("#!/bin/bash", f'#!/bin/bash\necho "$@" >> {seen}'))
    run_script("--time", "20", "--save-ahead", "60", "--node-check-limit", "7")
    steps = [line for line in seen.read_text().splitlines() if "contentv" in line]
    assert ["--time=7 " in line for line in steps] == [True, False], steps


def test_a_signal_just_before_a_step_starts_reaches_it(programs, tmp_path):
    steps = slurm_script.STEPS.replace("@srun@", "srun").replace("@python@", "launchers.train")
    # As if the signal came between the last look at it and the start.
    trap = """trap 'case $BASH_COMMAND in srun*) asked=yes ;; esac' DEBUG"""
    text = f"step= asked= logs={shlex.quote(str(tmp_path))}\n{steps}\n{trap}\nranks rank module; echo $status"
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "TRAIN": "exec sleep 50"}
    done = subprocess.run(["bash", "-T", "-c", text], capture_output=True, text=True, env=environment, timeout=LIMIT)
    assert done.stdout.split() == [str(128 + signal.SIGUSR1)], done.stderr
