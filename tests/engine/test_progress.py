"""Progress: plain lines where nobody watches, a bar where someone does, and the time left in both."""

import io

from contentv.engine import progress
from contentv.engine.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_log_file_gets_plain_lines_with_the_time_left(monkeypatch):
    clock = iter([100.0, 110.0, 130.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    shown = Progress("training", total=50, done=10, unit="step", stream=stream)
    # Ten steps in 10 seconds leave 30 steps: 30 s. Then 30 in 30 s leave 10.
    shown.advance_to(20, {"loss": 0.123456})
    shown.advance_to(40)
    shown.close()
    assert stream.getvalue() == (
        "training: step 20/50  loss 0.1235  time left 00:30\ntraining: step 40/50  time left 00:10\n"
    )


def test_a_log_file_is_not_flooded(monkeypatch):
    clock = iter([0.0, 1.0, 2.0, 5.9, 6.0, 6.5, 7.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    shown = Progress("sampling", total=6, unit="step", stream=stream)
    for done in range(1, 7):
        shown.advance_to(done)
    assert [line.split()[2] for line in stream.getvalue().splitlines()] == ["1/6", "4/6", "6/6"]


def test_before_anything_is_done_the_time_left_is_unknown():
    stream = io.StringIO()
    Progress("data", total=5, unit="clip", stream=stream).advance_to(0)
    assert stream.getvalue() == "data: clip 0/5  time left unknown\n"


def test_a_terminal_gets_a_bar():
    stream = Terminal()
    shown = Progress("training", total=4, done=1, unit="step", stream=stream)
    shown.advance_to(3, {"loss": 2.0})
    shown.close()
    assert "training" in stream.getvalue() and "3/4" in stream.getvalue() and "loss 2" in stream.getvalue()
