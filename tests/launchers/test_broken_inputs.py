"""Every command, given good inputs with one thing broken: a message, a status, no traceback, no hang, nothing written.

The cases are in broken_inputs.py and broken_fields.py, the ways to break a file in damage.py.
"""

import faulthandler
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from random import Random

import pytest

from tests.launchers import broken_fields, broken_inputs
from tests.launchers.broken_inputs import COMMANDS, DIGESTED, LAST, MISTAKE, PICKLED, READERS, Case
from tests.launchers.damage import damaged, flip

SECTIONS = (
    broken_inputs.digested_files,
    broken_inputs.published_files,
    broken_inputs.run_files,
    broken_inputs.renamed,
    broken_inputs.config_keys,
    broken_inputs.config_ranges,
    broken_inputs.yaml_texts,
    broken_fields.checkpoint_fields,
    broken_fields.manifest_fields,
    broken_fields.codec_fields,
    broken_fields.headers,
    broken_fields.published_fields,
    broken_fields.index_fields,
    broken_fields.options,
)
CASES = tuple(chain.from_iterable(section() for section in SECTIONS))
SECONDS = 20
"""A case takes hundredths of one; a busy machine takes longer, a hang for ever."""

REMEDY = re.compile(
    r"\b(add|another place|choose|convert|correct|crop|cut|encode|fetch|free|give|go on|install|leave|lower|must be|"
    r"must end|name|remove|restore|set|start|take|write)\b"
)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The folder of good inputs: a run with its shards, published weights whole and in pieces, golden values."""
    from tests.launchers.good_inputs import make_good_inputs

    folder = make_good_inputs(tmp_path_factory.mktemp("good"))
    shutil.copytree(folder, pristine(folder))
    return folder


def pristine(folder: Path) -> Path:
    """Where a copy of the good inputs is: a command that should have refused may have changed them."""
    return folder.with_name("pristine")


def restore(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(pristine(folder), folder)
    os.chdir(folder)


class Hung(BaseException):
    """No Exception, and above all no TimeoutError: that is an OSError, which commands rightly turn into a message."""


@contextmanager
def within(seconds: int):
    """Ends what hangs, with the place where it does; what no signal ends, inside a library, ends with this process."""

    def late(_number, _frame):
        raise Hung(f"not done after {seconds} s")

    former = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    faulthandler.dump_traceback_later(3 * seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def state(folder: Path) -> dict[str, tuple]:
    """Every name below, with what would tell a change; links and pipes are looked at, not through."""
    found = {}
    for place, folders, names in os.walk(folder):
        for name in chain(folders, names):
            path = os.path.join(place, name)
            facts = os.lstat(path)
            found[path] = (facts.st_mode, facts.st_ino, facts.st_size, facts.st_mtime_ns * (name in names))
    return found


def run(command: str, *options: str) -> int:
    name, *arguments = COMMANDS[command]
    try:
        with within(SECONDS):
            return importlib.import_module(f"contentv.launchers.{name}").main([*arguments, *options])
    except SystemExit as exit:
        return exit.code


def check(case: Case, status: int, out: str, err: str) -> None:
    assert status == case.status, err
    assert "Traceback" not in err and out == ""
    message = err[err.index("error: ") :] if case.options and "usage: " in err and "error: " in err else err
    if "╭" not in err and "usage: " not in err:  # argparse and tyro have forms of their own
        assert err.startswith("error: ") and err.count("error: ") == 1 and "\n\n" not in err.strip(), err
        assert len(err) < 4000, err
        assert REMEDY.search(err), f"no remedy: {err}"
        if case.file:
            names = (Path(case.file).name, Path(case.file).parent.name)
            assert any(name in err for name in (*names, *case.told) if name), f"names neither of {names}: {err}"
    plain = " ".join(message.replace("│", " ").split())
    for words in case.told:
        assert words in plain, f"{words!r} is not in: {plain}"


def test_there_are_enough_and_each_has_a_name_of_its_own():
    names = [str(case) for case in CASES]
    assert len(set(names)) == len(names) >= 300
    assert {case.command for case in CASES} == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_good_inputs_are_taken(good, command, monkeypatch):
    """Or every case would be refused for nothing. Golden values that are none end with status 1: they differ."""
    monkeypatch.chdir(good)
    try:
        assert run(command) == (1 if command.startswith("parity") else 0)
    finally:
        restore(good)


@pytest.mark.parametrize("case", CASES, ids=map(str, CASES))
def test_it_is_refused(good, case, capfd, monkeypatch):
    monkeypatch.chdir(good)
    aside = good.parent / "aside"
    with damaged(good / case.file, case.damage, case.name, aside) if case.file else nullcontext():
        before = state(good)
        status = run(case.command, *case.options)
        is_unchanged = state(good) == before
    if not is_unchanged:
        restore(good)
    check(case, status, *capfd.readouterr())
    assert is_unchanged, "something was left behind"


IN_A_PROCESS = (
    "run/checkpoints/step-00000006/tensors/common.pt: flip in the second half",
    "shards/manifest.json: a pipe",
    "published/diffusion_pytorch_model.safetensors: header length vast",
    "new.yaml: a bomb",
    r"'--prompt \udcff\udcfe'",
)


@pytest.mark.parametrize("name", IN_A_PROCESS)
def test_a_process_of_its_own_says_and_ends_the_same(good, name):
    case = next(case for case in CASES if case.name == name)
    command = [sys.executable, "-m", "contentv.launchers.contentv", *COMMANDS[case.command], *case.options]
    with damaged(good / case.file, case.damage, case.name, good.parent / "aside") if case.file else nullcontext():
        before = state(good)
        answer = subprocess.run(command, cwd=good, capture_output=True, timeout=120)
        assert state(good) == before, "something was left behind"
    check(case, answer.returncode, answer.stdout.decode(), answer.stderr.decode())


def test_a_pickle_that_was_not_recorded_is_never_run(good, monkeypatch, capfd):
    """Whole, of the same size, and harmful: as somebody would leave it who wants more than to break a run."""
    monkeypatch.chdir(good)
    canary = good.parent / "canary"
    for name in PICKLED:
        path = good / LAST / "tensors" / name
        harm = b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR."
        whole = path.read_bytes()
        assert len(harm) < len(whole)
        path.write_bytes(harm + bytes(len(whole) - len(harm)))
        for command in READERS:
            assert run(command) == MISTAKE and "expected" in capfd.readouterr().err
        path.write_bytes(whole)
    assert not canary.exists()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4000))
def test_a_bit_anywhere_in_what_has_a_digest(good, seed, capfd, monkeypatch):
    monkeypatch.chdir(good)
    draw = Random(seed)
    file, commands = draw.choice(sorted(DIGESTED.items()))
    case = Case(f"bit {seed} of {file}", draw.choice(commands), file, flip(0, 1))
    with damaged(good / file, case.damage, case.name, good.parent / "aside"):
        before = state(good)
        status = run(case.command)
        assert state(good) == before
    check(case, status, *capfd.readouterr())
