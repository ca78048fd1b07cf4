"""`contentv launch` without Slurm: the script to the letter, what is written and sent, and every refusal."""

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from contentv import __version__
from contentv.engine import json_lines
from contentv.engine.config_yaml import load
from contentv.engine.run_files import RESTARTS_FILE
from contentv.engine.sent_jobs import QueuedJob, sent_jobs
from contentv.launchers import grid, launch, status, stop
from contentv.launchers.slurm_queue import fate, look_up, parse_squeue, seconds_of

SCRIPTS = Path(__file__).parent / "scripts"
"""Golden: what --dry-run prints, with this machine's places replaced by @words@."""
LAYOUT = ["--parallel.tensor", "8", "--parallel.sequence", "True"]
LARGE = ["contentv_8b", *LAYOUT, "--nodes", "32", "--devices-per-node", "8", "--partition", "big", "--time", "4:00:00"]
GOLDEN = {
    "large": [*LARGE, "--account", "video", "--sbatch", "exclusive", "--cpus-per-device", "12",
              "--sbatch", "gpus-per-node=h100:8", "--environment", "NCCL_SOCKET_IFNAME=ib0"],
    "pyxis": [*LARGE, "--container", "registry/contentv:1", "--mount", "/scratch", "--node-check", "stop",
              "--environment", "NCCL_SOCKET_IFNAME=ib0"],
    "apptainer": [*LARGE, "--container", "c.sif", "--container-runtime", "apptainer", "--device", "npu"],
    "sweep": ["quickstart", "--trainer.micro-batch", "4", "--nodes", "1", "--devices-per-node", "2", "--device", "cpu",
              "--node-check", "off", "--grid", "parallel.tensor=1,2", "--grid", "trainer.seed=3,4", "--array", "2"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def dry(capsys, *argv: str) -> str:
    assert launch.main([*argv, "--dry-run"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", GOLDEN)
def test_a_script_is_its_golden_file_and_bash_takes_it(name, capsys, tmp_path):
    text = dry(capsys, *GOLDEN[name])
    plain = text.replace(str(tmp_path), "@here@").replace(sys.executable, "@python@").replace(__version__, "@version@")
    assert plain == (SCRIPTS / f"{name}.sbatch").read_text(), f"if this is meant, write it into scripts/{name}.sbatch"
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    assert not list(tmp_path.iterdir()), "--dry-run wrote something"


def test_a_dry_run_needs_no_torch_and_no_slurm():
    code = "import sys; from contentv.launchers import launch; launch.main(sys.argv[1:]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *LARGE, "--dry-run"], capture_output=True, text=True,
                          env=os.environ | {"PATH": ""})  # fmt: skip
    assert done.returncode == 0 and done.stdout.endswith("\nFalse\n"), done.stderr


def test_what_the_users_profile_says_of_the_queue_stands_in_the_script(capsys, monkeypatch):
    for name in ("ACCOUNT", "PARTITION", "QOS", "CONSTRAINT"):
        monkeypatch.setenv(f"SBATCH_{name}", f"my-{name.lower()}")
    said = dry(capsys, *LARGE)
    assert "--account=my-account\n#SBATCH --partition=big\n#SBATCH --qos=my-qos\n#SBATCH --constraint=my-con" in said


def test_help_has_recipes_and_options_whatever_else_is_given(capsys):
    for argv in (["--help"], ["quickstart", "--help"]):
        assert launch.main(argv) == 0
        said = capsys.readouterr().out
        assert "--save-ahead SECONDS" in said and "contentv_8b" in said and "--section.key value" in said


def test_every_link_of_a_chain_but_the_last_leaves_its_time_limit_to_the_next():
    options, _ = launch.parse(["--nodes", "1", "--devices-per-node", "1", "--chain", "2"])
    config = launch.starting_point("quickstart")
    jobs = launch.Jobs(options, grid.points_of(config, []), Path("run").absolute())
    first, last = jobs.text(1, is_last=False), jobs.text(2, is_last=True)
    assert '[ "$asked" = USR1 ] || again' in first and '[ "$asked" = USR1 ] || again' not in last


SIZE = ["--nodes", "2", "--devices-per-node", "2"]
REFUSED = {
    "no recipe": ([], "no recipe"),
    "unknown recipe": (["quickstrat", *SIZE], "did you mean quickstart"),
    "layout": (["contentv_8b", *SIZE, "--parallel.tensor", "3"], "--nodes 2 x --devices-per-node 2 = 4 processes"),
    "batch": (["contentv_8b", *SIZE, "--trainer.global-batch", "6"], "does not divide it"),
    "no slurm": (["contentv_8b", *SIZE], "say --dry-run"),
    "array alone": (["contentv_8b", *SIZE, "--array", "2"], "--grid"),
    "grid without values": (["contentv_8b", *SIZE, "--grid", "parallel.tensor="], "values are missing"),
    "grid of a point that does not fit": (["contentv_8b", *SIZE, "--grid", "parallel.tensor=1,3"], "4 processes"),
    "sbatch option of ours": (["contentv_8b", *SIZE, "--sbatch", "nodes=3"], "an option of its own"),
    "beginning of an option of ours": (["contentv_8b", *SIZE, "--sbatch", "ntasks-per=3"], "an option of its own"),
    "short sbatch option": (["contentv_8b", *SIZE, "--sbatch", "N=3"], "long name"),
    "another number of GPUs": (["contentv_8b", *SIZE, "--sbatch", "gpus-per-node=h100:8"], "an option of its own"),
    "GPUs of a task": (["contentv_8b", *SIZE, "--sbatch", "gpus-per-task=1"], "an option of its own"),
    "environment of ours": (["contentv_8b", *SIZE, "--environment", "MASTER_PORT=1"], "sets MASTER_PORT itself"),
    "sbatch line": (["contentv_8b", *SIZE, "--sbatch", "comment=a\nb"], "in one line"),
    "environment": (["contentv_8b", *SIZE, "--environment", "X-Y=1"], "NAME=VALUE"),
    "hardly any time": (["contentv_8b", *SIZE, "--time", "9:59"], "--time 9:59 is 599 s and --save-ahead is 300 s"),
    "too far ahead": (["contentv_8b", *SIZE, "--save-ahead", "65536"], "Slurm takes at most 65535 s"),
    "check as long as the job": (["contentv_8b", *SIZE, "--time", "20", "--node-check-limit", "20"], "leave nothing"),
    "chain and grid": (["contentv_8b", *SIZE, "--chain", "2", "--grid", "trainer.seed=1,2"], "cannot be combined"),
}


@pytest.mark.parametrize(("time", "minutes"), [([], 10), (["--time", "8:00:00"], 10), (["--time", "11"], 5)])
def test_a_node_check_takes_at_most_half_of_the_job(time, minutes):
    options, _ = launch.parse([*SIZE, *time])
    assert options.node_check_limit == minutes


@pytest.mark.parametrize("share", ["50", "-0.1", "half", "nan"])
def test_a_floor_is_a_share(share, capsys):
    with pytest.raises(SystemExit, match="2"):
        launch.parse([*SIZE, "--node-floor", share])
    assert f"'{share}' is not a share from 0 to 1" in capsys.readouterr().err


@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake_is_one_sentence_and_status_2_and_writes_nothing(name, capsys, monkeypatch, tmp_path):
    argv, words = REFUSED[name]
    monkeypatch.setenv("PATH", "")
    assert launch.main(argv) == 2
    said = capsys.readouterr().err
    assert words in said and said.startswith("error: ") and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


SBATCH = """#!/bin/bash
# Takes a script as Slurm does: remembers how it was called and prints a number.
echo "$@" >> {calls}
[ -e {refuse} ] && {{ echo "sbatch: error: Invalid partition" >&2; exit 1; }}
echo "$((40 + $(wc -l < {calls})));cluster"
"""

SQUEUE = """#!/bin/bash
# Tasks of an array one a line only if asked so; no such job, or no answer of the controller, in Slurm's words.
[ -e {down} ] && {{ echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; }}
[ -s {queue} ] || {{ echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; }}
case " $* " in *" --array "*) cat {queue} ;; *) head -n 1 {queue} ;; esac
"""


@pytest.fixture
def controller(tmp_path, monkeypatch):
    """sbatch and squeue as far as the launcher asks them; the drills of tests/slurm ask the real ones."""
    programs = tmp_path / "programs"
    programs.mkdir()
    calls, refuse, queue = (programs / name for name in ("calls", "refuse", "queue"))
    texts = {
        "sbatch": SBATCH.format(calls=calls, refuse=refuse),
        "squeue": SQUEUE.format(queue=queue, down=programs / "down"),
    }
    for name, text in texts.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755 | stat.S_IXUSR)
    queue.touch()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return programs


def test_what_is_sent_lies_in_the_run_folder_and_runs_from_there(controller, capsys, tmp_path):
    run = tmp_path / "runs" / "quickstart"
    argv = ["quickstart", *SIZE, "--chain", "3", "--trainer.max-steps", "20", "--trainer.micro-batch", "2", "--json"]
    assert launch.main(argv) == 0
    printed = capsys.readouterr()
    said = json.loads(printed.out)
    assert "data/quickstart/shards holds no manifest.json" in printed.err
    assert said == {"jobs": ["41", "42", "43"], "folder": str(run / "jobs" / "1")} and sent_jobs(run) == said["jobs"]
    calls = (controller / "calls").read_text().splitlines()
    assert ["dependency" in call for call in calls] == [False, True, True] and "afterany:42" in calls[2]
    assert [line["event"] for line in json_lines.read(run / RESTARTS_FILE)] == ["launch"]
    assert load(run / "jobs" / "1" / "config.yaml").trainer.max_steps == 20
    # The snapshot is a whole package: the bookkeeping of the job starts from it.
    code = "import contentv, contentv.launchers.slurm_job as s; print(s.__file__)"
    place = {"PYTHONPATH": str(run / "jobs" / "1" / "code")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | place)
    assert done.stdout.startswith(str(run / "jobs" / "1" / "code")), done.stderr


def test_a_second_job_of_a_run_is_refused_while_the_first_is_there(controller, capsys):
    argv = ["quickstart", "--nodes", "1", "--devices-per-node", "1"]
    assert launch.main(argv) == 0
    (controller / "queue").write_text("41|PENDING|(Resources)|10:00\n")
    assert launch.main(argv) == 2 and "job 41" in capsys.readouterr().err
    (controller / "queue").write_text("")
    assert launch.main(argv) == 0 and (Path("runs/quickstart/jobs/2")).is_dir()


def test_a_squeue_that_fails_is_no_job_that_is_gone(controller, capsys):
    argv = ["quickstart", "--nodes", "1", "--devices-per-node", "1"]
    assert launch.main(argv) == 0 and look_up("41").state == "GONE"
    (controller / "down").touch()
    with pytest.raises(ValueError, match=r"does not say how job 41 is: .*Unable to contact slurm controller"):
        look_up("41")
    assert launch.main(argv) == 2 and stop.main(["runs/quickstart"]) == 2
    capsys.readouterr()
    assert status.main(["runs/quickstart"]) == 0  # from the folder alone
    said = capsys.readouterr()
    assert "not started" in said.out and "warning: squeue does not say" in said.err


@pytest.mark.parametrize(
    ("sacct", "state"),
    [("echo FAILED; echo 'CANCELLED by 1000'", "CANCELLED"), ("echo TIMEOUT", "TIMEOUT"), ("echo", "GONE"),
     ("echo 'Slurm accounting storage is disabled' >&2; exit 1", "GONE"), (None, "GONE")],
)  # fmt: skip
def test_how_a_forgotten_job_ended_the_accounts_know(controller, sacct, state):
    if sacct:
        (controller / "sacct").write_text(f"#!/bin/bash\n{sacct}\n")
        (controller / "sacct").chmod(0o755)
    assert look_up("41").state == "GONE" and fate("41").state == state
    (controller / "queue").write_text("41|RUNNING|n1|10:00\n")
    assert fate("41").state == "RUNNING"


def test_a_task_of_an_array_that_waits_is_looked_up_as_itself(controller):
    (controller / "queue").write_text("41_0|RUNNING|n1|9:00\n41_2|PENDING|(Priority)|10:00\n")
    assert [look_up(job).state for job in ("41_0", "41_2")] == ["RUNNING", "PENDING"]
    (controller / "queue").write_text("41_[0-3%2]|PENDING|(Priority)|10:00\n")
    assert look_up("41_2").job == "41_2"  # else stop would cancel the whole array


@pytest.mark.parametrize("state", ["PREEMPTED", "BOOT_FAIL", "REVOKED"])
def test_states_that_are_not_left_again_are_over(state):
    assert QueuedJob(job="7", state=state, reason="", remaining="").is_over


def test_what_slurm_refuses_is_said_in_its_words(controller, capsys):
    (controller / "refuse").touch()
    assert launch.main(["quickstart", "--nodes", "1", "--devices-per-node", "1"]) == 2
    assert "Invalid partition" in capsys.readouterr().err


def test_every_point_of_a_sweep_has_a_folder_and_a_task(controller, capsys, tmp_path):
    argv = ["quickstart", "--nodes", "1", "--devices-per-node", "2", "--grid", "parallel.tensor=1,2"]
    assert launch.main([*argv, "--trainer.micro-batch", "4"]) == 0
    base = tmp_path / "runs" / "quickstart"
    for number, tensor in enumerate((1, 2)):
        config = load(base / "jobs" / "1" / f"config-{number}.yaml")
        assert config.parallel.tensor == tensor
        assert config.run.folder == f"runs/quickstart/parallel.tensor={tensor}"
        assert sent_jobs(Path(config.run.folder)) == [f"41_{number}"]
        assert status.main([config.run.folder]) == 0 and "not started" in capsys.readouterr().out
    assert status.main(["runs/quickstart"]) == 2
    assert "holds a sweep" in (said := capsys.readouterr().err) and "parallel.tensor=2" in said


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [("10", 600), ("9:59", 599), ("8:00:00", 28800), ("1-12", 129600), ("1-0:30", 88200), ("2-1:00:05", 176405),
     ("0", None), ("UNLIMITED", None), ("", None), ("1:2:3:4", None)],
)  # fmt: skip
def test_time_limits_are_read_as_sbatch_does(limit, seconds):
    assert seconds_of(limit) == seconds


def test_squeue_is_read():
    assert parse_squeue("17_2|PENDING|(Priority)|1:00:00\n") == QueuedJob(
        job="17_2", state="PENDING", reason="Priority", remaining="1:00:00"
    )
    with pytest.raises(RuntimeError, match=re.escape("number|state")):
        parse_squeue("slurm_load_jobs error")
