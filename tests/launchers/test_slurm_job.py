"""The bookkeeping steps of a job's script: what the end of srun, and a signal before it, are booked as."""

import subprocess
import sys

import pytest

from contentv.engine.config_yaml import to_yaml
from contentv.engine.restarts import Restarts
from contentv.launchers import slurm_job
from contentv.launchers.command_line import starting_point


@pytest.fixture
def run(tmp_path):
    """A run whose first attempt is under way."""
    (tmp_path / "config.yaml").write_text(to_yaml(starting_point("quickstart")))
    Restarts(tmp_path).launch()
    given = [str(tmp_path), str(tmp_path / "config.yaml"), "--max-restarts", "9", "--job", "7", "--nodes", "n1", "n2"]
    assert slurm_job.main(["begin", *given]) == 0
    return tmp_path


def of_the_end(run, status: int, asked: str = "") -> list[str]:
    given = [str(run), str(run / "config.yaml"), "--max-restarts", "9", "--attempt", "1", "--logs", str(run)]
    return ["end", *given, "--status", str(status), "--asked", asked]


def end(run, status: int, asked: str = "") -> None:
    assert slurm_job.main(of_the_end(run, status, asked)) == 0


@pytest.mark.parametrize(
    ("status", "asked", "booked"),
    [(138, "yes", 75), (138, "", 138), (1, "yes", 1), (2, "yes", 2), (75, "yes", 75)],
)
def test_only_what_the_signal_itself_ended_is_no_failure(run, capsys, status, asked, booked):
    end(run, status, asked)
    attempt = Restarts(run).attempts()[0]
    assert attempt.status == booked and attempt.next == ("stop" if booked == 2 else "again")
    assert ("before it could save; step 0 stands" in attempt.reason) == (booked == 75)
    assert capsys.readouterr().out.endswith(f"{attempt.next}\n")


def test_a_mistake_is_one_whatever_srun_says(run):
    (run / "srun-rank.log").write_text(
        "srun: error: n1: tasks 0-1: Exited with exit code 2\nsrun: error: n2: tasks 2-3: Terminated\n"
    )
    end(run, 143)
    attempt = Restarts(run).attempts()[0]
    assert (attempt.status, attempt.next) == (2, "stop")


@pytest.mark.parametrize(("code", "booked"), [(1, 143), (75, 75), (138, 75)])
def test_a_rank_that_failed_after_the_signal_is_a_failure_though_srun_ended_the_others(run, code, booked):
    (run / "srun-rank.log").write_text(
        f"srun: error: n1: task 0: Exited with exit code {code}\nsrun: error: n2: tasks 2-3: Terminated\n"
    )
    end(run, 143, "yes")
    assert Restarts(run).attempts()[0].status == booked


def test_the_script_hears_what_follows_though_the_jobs_log_is_full(run):
    command = [sys.executable, "-m", "contentv.launchers.slurm_job", *of_the_end(run, 1)]
    with open("/dev/full", "w") as log:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True)
    assert done.stdout == "again\n"
