"""A rank that dies or hangs ends the run within the configured time, and every other rank says which it was."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from types import SimpleNamespace

import pytest

from contentv.engine.metrics import METRICS_FILE, read_metrics
from contentv.parallel.sighting import PERIOD, Sighting
from contentv.parallel.watch import Watch, _failed
from tests.engine.small_run import write_shards

LIMIT = 8
"""Seconds without progress."""
PATIENCE = 120


@pytest.fixture
def ranks(tmp_path):
    """Starts two ranks as srun does, without torchrun to end one when the other fails; kills what is left."""
    shards = write_shards(tmp_path / "shards")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["quickstart", "--model.layers", "2", "--model.heads", "2", "--model.head-width", "16"]
    options += ["--model.text-width", "24", "--model.pooled-width", "24", "--data.folder", str(shards)]
    options += ["--run.folder", str(tmp_path / "run"), "--trainer.max-steps", "100000", "--trainer.micro-batch", "4"]
    options += ["--trainer.checkpoint-every", "100000", "--trainer.log-every", "1", "--trainer.threads", "1"]
    options += ["--trainer.validate-every", "0", "--parallel.tensor", "2", "--parallel.timeout-seconds", str(LIMIT)]
    started = []
    for rank in range(2):
        place = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "contentv.launchers.train", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | place | {"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "CONTENTV_DEVICE": "cpu"},
        )
        started.append(process)
    metrics = tmp_path / "run" / METRICS_FILE
    deadline = time.monotonic() + PATIENCE
    while not (metrics.exists() and len(read_metrics(metrics)) >= 3):
        assert time.monotonic() < deadline and all(process.poll() is None for process in started)
        time.sleep(0.05)
    time.sleep(2.5 * PERIOD)  # each has published where it is
    yield started
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP], ids=["dead", "stuck"])
def test_the_rank_that_holds_the_other_up_is_named(ranks, blow):
    first, second = ranks
    second.send_signal(blow)
    struck = time.monotonic()
    _, said = first.communicate(timeout=PATIENCE)
    assert first.returncode == 1 and time.monotonic() - struck < LIMIT + 20
    assert "error: " in said, said
    message = said[said.rindex("error: ") :].strip()
    assert "Traceback" not in message and "\n" not in message
    # Which rank, in which step and phase; and the collective in which this one waits.
    assert "rank 1 silent for" in message and "last seen at step" in message
    assert "rank 0 waits in" in message or "rank 0 failed in" in message
    assert any(name in message for name in ("all_reduce", "all_gather", "reduce_scatter", "barrier", "a collective"))
    assert "last seen at step 0" not in message


class Store(dict):
    """A store of torch.distributed, as far as a watch asks it."""

    def check(self, keys):
        return all(key in self for key in keys)

    def multi_get(self, keys):
        return [self[key] for key in keys]

    def set(self, key, value):
        self[key] = value


def test_a_failed_wait_for_a_collective_is_told_as_one():
    """megatron starts its reduction of input gradients and waits for it later, in a file that mostly computes."""
    watch = watch_of_three({1: {"ago": 60}, 2: {}})

    def backward():
        handle = SimpleNamespace(wait=partial(int, "closed by peer"))  # fails without a frame of its own
        handle.wait()

    with pytest.raises(ValueError, match="closed by peer") as raised:
        backward()
    assert "test_lost_ranks.py:backward, for a collective" in _failed(raised.value.__traceback__)
    with pytest.raises(ValueError) as elsewhere:
        int("a rank")
    assert _failed(elsewhere.value.__traceback__) is None
    assert "rank 0 failed in" in watch.report("backward")


def watch_of_three(seen: dict[int, dict]) -> Watch:
    watch = Watch(limit=1.0, rank=0, world=3)
    watch._store = Store()
    for rank, values in seen.items():
        now = time.time() - values.pop("ago", 0)
        sighting = Sighting(**{"rank": rank, "step": 7, "phase": "update", "place": "x.py:f", "waits": True,
                               "published": now} | values)  # fmt: skip
        watch._store.set(f"contentv/watch/{rank}", json.dumps(asdict(sighting)))
    watch.at(7, "update")
    return watch


@pytest.mark.parametrize(
    ("seen", "words", "not_words"),
    [
        ({1: {"ago": 60}, 2: {}}, "rank 1 silent for 60 s, last seen at step 7", "rank 2"),
        ({1: {}, 2: {"step": 6, "waits": False}}, "rank 2 is at step 6, update, computing in x.py:f", "rank 1"),
        ({1: {"waits": False, "place": "block.py:compute"}, 2: {}}, "rank 1 is at step 7", "rank 2"),
        ({1: {}}, "rank 2 never reported", "rank 1 "),
        ({1: {}, 2: {}}, "every other rank reports and waits as well", "rank 1"),
    ],
)  # fmt: skip
def test_who_is_named(seen, words, not_words):
    report = watch_of_three(seen).report()
    assert report.startswith("step 7, update: rank 0 is in ") and words in report and not_words not in report


def test_a_rank_that_has_not_moved_tells_its_calls():
    watch = watch_of_three({})
    with ThreadPoolExecutor(1) as pool:  # as the watch's own thread, which looks at the main one
        assert pool.submit(lambda: watch._sighting().stack).result() == ""
        watch._moved -= 60
        stack = pool.submit(lambda: watch._sighting().stack).result()
    calls = stack.split(" < ")
    assert any(call.startswith("test_lost_ranks.py:test_a_rank_that_has_not_moved_tells_its_calls:") for call in calls)
    assert "\n" not in stack and len(calls) <= 12
