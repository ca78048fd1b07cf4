"""What a stage took and how it ended."""

import subprocess
import sys
import time

import psutil
import pytest

from contentv.launchers import footprint
from contentv.launchers.footprint import Footprint, kill, tree_rss_mib
from tests.launchers.processes import all_end

PARENT = """
import subprocess, sys
held = b"x" * (60 << 20)
subprocess.run([sys.executable, "-c", "import time; held = b'x' * (90 << 20); time.sleep(0.5)"])
print("done")
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(footprint, "INTERVAL", 0.02)


def python(code):
    return [sys.executable, "-c", code]


def test_memory_is_summed_over_all_processes_alive_at_once():
    meter = Footprint()
    own = tree_rss_mib(psutil.Process().pid)
    assert meter.run(python(PARENT), stdout=subprocess.PIPE) == "done\n"
    # The two hold 150 MiB; an interpreter of each adds some.
    assert own + 150 < meter.peak_rss_mib < own + 250
    peak = meter.peak_rss_mib
    meter.run(python("import time; time.sleep(0.1)"))
    assert meter.peak_rss_mib == peak


def test_a_status_that_is_not_zero_is_raised():
    with pytest.raises(subprocess.CalledProcessError) as hit:
        Footprint().run(python("raise SystemExit(75)"))
    assert hit.value.returncode == 75


def test_being_killed_by_anyone_is_raised():
    for watch in (None, kill):
        code = "import os, time; time.sleep(30)" if watch else "import os; os.kill(os.getpid(), 9)"
        with pytest.raises(subprocess.CalledProcessError) as hit:
            Footprint().run(python(code), watch=watch)
        assert hit.value.returncode == -9


def test_nothing_that_a_failed_stage_started_is_left():
    code = "import os, subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
    for end in ("sys.exit(3)", "os.kill(os.getpid(), 9)", "sys.exit(0)"):
        started = []

        def watch(process, started=started):
            started += psutil.Process(process.pid).children()

        try:
            Footprint().run(python(f"{code} import time; time.sleep(0.4); {end}"), watch=watch)
        except subprocess.CalledProcessError:
            assert end != "sys.exit(0)"
        assert started and all_end(started)


def test_what_watch_raises_ends_the_stage():
    started = time.monotonic()

    def broken(process):
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        Footprint().run(python("import time; time.sleep(30)"), watch=broken)
    assert time.monotonic() - started < 10
