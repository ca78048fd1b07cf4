"""The life of a run: what is recorded, what follows an end, when it is given up, and the goodput."""

import errno
import json
from pathlib import Path

import pytest

from contentv.engine import rank_logs
from contentv.engine.checkpoints import FOLDER
from contentv.engine.restarts import SAME_STEP, Restarts
from contentv.engine.run_files import METRICS_FILE, OUTCOME_FILE, STOP_FILE

MAX_STEPS = 40


@pytest.fixture
def restarts(tmp_path):
    return Restarts(tmp_path)


def saved(restarts: Restarts, step: int) -> None:
    (restarts.folder / FOLDER / f"step-{step:08d}").mkdir(parents=True)


def outcome(restarts: Restarts, step: int) -> None:
    content = {"step": step, "complete": step >= MAX_STEPS, "signal": None}
    (restarts.folder / OUTCOME_FILE).write_text(json.dumps(content))


def begin(restarts: Restarts, budget: int = 100):
    return restarts.begin(job="7", nodes=["n1", "n2"], max_steps=MAX_STEPS, budget=budget)


def end(restarts: Restarts, attempt: int, status: int, reason: str = "", budget: int = 100) -> tuple[str, str]:
    return restarts.end(attempt, status=status, reason=reason, max_steps=MAX_STEPS, budget=budget)


def test_a_life_with_a_stop_a_crash_and_an_end(restarts):
    assert begin(restarts) == 1
    saved(restarts, 10)
    outcome(restarts, 10)
    # srun's status is that of ranks it ended itself; what rank 0 wrote counts.
    assert end(restarts, 1, 143) == ("again", "asked to stop, saved step 10")
    assert begin(restarts) == 2 and not (restarts.folder / OUTCOME_FILE).exists()
    assert end(restarts, 2, 137, "rank 3 on n2: Killed") == ("again", "rank 3 on n2: Killed")
    assert begin(restarts) == 3
    saved(restarts, MAX_STEPS)
    outcome(restarts, MAX_STEPS)
    assert end(restarts, 3, 0) == ("complete", "complete at step 40")
    assert begin(restarts) == "complete"
    attempts = restarts.attempts()
    assert [(each.first_step, each.last_step, each.status) for each in attempts] == [
        (0, 10, 75),
        (10, 10, 137),
        (10, 40, 0),
    ]
    assert attempts[1].nodes == ("n1", "n2") and attempts[1].failed and not attempts[0].failed


def test_a_crash_loop_stops_and_says_so(restarts):
    for attempt in range(1, SAME_STEP + 1):
        assert begin(restarts) == attempt
        following, reason = end(restarts, attempt, 1, "error")
    assert following == "stop" and "crash loop: 3 attempts in a row failed after step 0" in reason
    assert "crash loop" in begin(restarts)  # nor does the next job of a chain try again


def test_a_launch_begins_anew_and_numbers_go_on(restarts):
    for attempt in range(1, SAME_STEP + 1):
        begin(restarts, budget=2)
        end(restarts, attempt, 1, "error", budget=2)
    assert "crash loop" in begin(restarts, budget=2)
    (restarts.folder / STOP_FILE).touch()
    restarts.launch()
    assert begin(restarts, budget=2) == SAME_STEP + 1 and len(restarts.attempts()) == SAME_STEP + 1
    assert end(restarts, SAME_STEP + 1, 1, "error", budget=2) == ("again", "error")


def test_attempts_that_never_come_to_a_checkpoint_are_no_endless_loop(restarts):
    for attempt in range(1, SAME_STEP + 1):
        assert begin(restarts) == attempt
        following, reason = end(restarts, attempt, 75)
        assert reason.startswith("asked to stop before it could save; step 0 stands")
        assert following == ("again" if attempt < SAME_STEP else "stop")
    assert "no time to get anywhere: 3 attempts in a row" in reason and "--save-ahead" in reason
    assert "no time to get anywhere" in begin(restarts)


def test_what_follows_is_told_even_if_it_cannot_be_written_down(restarts, monkeypatch):
    assert begin(restarts) == 1

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("contentv.engine.json_lines.append", full)
    following, reason = end(restarts, 1, 1, "error")
    assert following == "again" and reason.startswith("error; this could not be written into") and "No space" in reason


def test_progress_and_failures_from_outside_are_no_crash_loop(restarts):
    for attempt in range(1, 8):
        assert begin(restarts) == attempt
        if attempt % 2:  # its node failed: no end
            continue
        saved(restarts, attempt)
        assert end(restarts, attempt, 1, "error")[0] == "again"


def test_a_crash_among_nodes_that_fail_is_still_the_same_crash(restarts):
    for attempt in range(1, 6):
        assert begin(restarts) == attempt
        if attempt % 2:
            following, _ = end(restarts, attempt, 1)
    assert following == "stop"


def test_the_budget_counts_failures_and_no_stops(restarts):
    for attempt in range(1, 6):
        assert begin(restarts, budget=1) == attempt
        saved(restarts, attempt)
        assert end(restarts, attempt, 75, budget=1)[0] == "again"
    assert begin(restarts, budget=1) == 6
    assert end(restarts, 6, 1, budget=1)[0] == "again"
    assert begin(restarts, budget=1) == 7
    following, reason = end(restarts, 7, 1, budget=1)
    assert following == "stop" and "budget is spent: 2 attempts failed and --max-restarts is 1" in reason


def test_a_bad_node_is_left_and_no_crash(restarts):
    for attempt in range(1, 6):
        assert begin(restarts) == attempt
        assert restarts.end_for_nodes(attempt, ["n1"], go_on=True, budget=100)[0] == "again"
    assert begin(restarts) == 6
    assert restarts.end_for_nodes(6, ["n2"], go_on=False, budget=100) == ("stop", "the node check found n2 bad")


def test_a_mistake_and_a_request_to_stop_are_final(restarts):
    assert begin(restarts) == 1
    assert end(restarts, 1, 2)[0] == "stop"
    assert begin(restarts) == 2
    (restarts.folder / STOP_FILE).write_text("{}")
    assert end(restarts, 2, 75)[0] == "stop"
    assert "stopped on request" in begin(restarts)


def test_a_preempted_attempt_that_saved_but_could_not_say_so_is_no_failure(restarts):
    begin(restarts)
    saved(restarts, 10)
    outcome(restarts, 10)
    assert begin(restarts) == 2
    first = restarts.attempts()[0]
    assert (first.status, first.last_step, first.failed) == (75, 10, False) and "before it could say so" in first.reason


def test_a_half_line_is_passed_over_and_the_next_has_its_own(restarts):
    begin(restarts)
    with restarts.path.open("a") as file:
        file.write('{"event": "end", "att')
    assert begin(restarts) == 2 and [each.attempt for each in restarts.attempts()] == [1, 2]


def test_goodput_is_the_time_of_the_steps_that_count(restarts, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("contentv.engine.restarts.time.time", lambda: now[0])
    assert restarts.goodput() is None
    begin(restarts)
    lines = [{"step": 1, "loss": 1.0, "seconds": 30.0}, {"step": 2, "loss": 1.0, "seconds": 20.0},
             {"step": 2, "validation_loss": 1.0}]  # fmt: skip
    (restarts.folder / METRICS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "lo')
    now[0] = 1200.0
    end(restarts, 1, 75)
    assert restarts.goodput() == {"kept_seconds": 50.0, "wall_seconds": 200.0, "goodput": 0.25, "attempts": 1}


SAID = {
    "srun-rank.log": "srun: error: n2: task 3: Killed\nsrun: Terminating StepId=5.0\n"
    "srun: error: n1: tasks 0-1: Terminated\n",
    "rank-0.log": "runs/a starts\nerror: no progress for 8 s at step 7: rank 0 waits in barrier; rank 3 silent\n",
    "rank-2.log": "Traceback (most recent call last):\n  File x\nOSError: [Errno 28] No space left on device\n",
    "rank-10.log": "all is well\n",
}


def test_what_failed_names_the_rank_its_node_and_its_error(tmp_path: Path):
    for name, text in SAID.items():
        (tmp_path / name).write_text(text)
    said = rank_logs.what_failed(tmp_path)
    assert said.startswith("rank 3 on n2: Killed; rank 0: error: no progress for 8 s")
    assert said.endswith("rank 2: OSError: [Errno 28] No space left on device") and "Terminated" not in said


def test_where_srun_ended_everyone_it_is_told_all_the_same(tmp_path: Path):
    (tmp_path / "srun-rank.log").write_text("srun: error: n1: tasks 0-1: Terminated\n")
    assert rank_logs.what_failed(tmp_path) == "rank 0-1 on n1: Terminated"


def test_ranks_that_left_by_themselves_are_told_from_those_that_srun_ended(tmp_path: Path):
    assert rank_logs.exit_codes(tmp_path) == set()
    (tmp_path / "srun-rank.log").write_text(
        "srun: error: n1: task 0: Exited with exit code 1\nsrun: error: n2: tasks 2-3: Exited with exit code 75\n"
        "srun: error: n1: task 1: Terminated\nsrun: error: n2: task 4: Killed\n"
    )
    assert rank_logs.exit_codes(tmp_path) == {1, 75}
