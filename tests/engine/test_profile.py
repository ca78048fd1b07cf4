"""A profile: what is in it, and that a run neither trains another bit nor pays anything where there is none."""

import gzip
import json
import subprocess
import sys
from dataclasses import replace

import pytest

from contentv.engine import profile
from contentv.engine.config import ProfileConfig
from contentv.engine.metrics import read_metrics
from contentv.engine.profile import Profile, Recorder, parts, ranges
from contentv.engine.report.trace import BUBBLE, EXPOSED, read_trace
from contentv.engine.run_files import profile_folder, trace_file
from contentv.engine.session import open_session
from contentv.engine.signals import StopSignals
from contentv.engine.trainer import train
from tests.engine.small_run import small_config

VOCABULARY = {"data", "noise", "embed", "loss", "reduce", "optimizer", "checkpoint", "head"} | {
    f"block {layer}{part}" for layer in (0, 1) for part in ("", " attention", " mlp", " norm")
}


class Stop(StopSignals):
    """Asks to stop during its step number `after`."""

    def __init__(self, after: int):
        super().__init__()
        self.left = after

    @property
    def stop_requested(self) -> bool:
        self.left -= 1
        return self.left <= 0


def run(folder, shards, steps="", signals=None, **sections):
    """A run's losses and gradient norms."""
    config = small_config(folder, shards, **sections)
    config = replace(config, profile=replace(config.profile, steps=steps))
    train(config, signals or StopSignals())
    return [(line["step"], line["loss"], line["grad_norm"]) for line in read_metrics(folder / "metrics.jsonl")]


def events(folder, steps):
    with gzip.open(trace_file(profile_folder(folder, steps), 0)) as file:
        trace = json.load(file)
    return trace["traceEvents"], trace["contentv"]


def test_a_profiled_run_trains_the_same_bits_and_names_every_part(shards, tmp_path):
    # The first block's forward runs again in backward, with its ranges; the second's tensors are made again there.
    trainer = {"recompute": "full", "recompute_blocks": 1}
    plain = run(tmp_path / "plain", shards, trainer=trainer)
    assert run(tmp_path / "profiled", shards, "2:3", trainer=trainer) == plain
    found, facts = events(tmp_path / "profiled", "2:3")
    names = {event["name"] for event in found if event.get("cat") == "user_annotation"}
    assert names >= VOCABULARY | {"step 2", "step 3"} and not names & {"step 1", "step 4"}
    assert facts["world"] == 1 and facts["roles"] == dict.fromkeys(("tensor", "context", "pipeline", "data"), 0)
    allocated = [event["args"]["Bytes"] for event in found if event["name"] == "[memory]"]
    assert any(size > 0 for size in allocated) and any(size < 0 for size in allocated)


def test_a_stop_in_between_keeps_what_was_seen_and_a_resume_may_profile(shards, tmp_path):
    plain = run(tmp_path / "plain", shards)
    run(tmp_path / "parts", shards, "2:4", signals=Stop(after=3))
    seen = {event["name"] for event in events(tmp_path / "parts", "2:4")[0]}
    assert {"step 2", "step 3"} <= seen and "step 4" not in seen
    assert run(tmp_path / "parts", shards, "4:4") == plain
    assert "step 4" in {event["name"] for event in events(tmp_path / "parts", "4:4")[0]}


def test_each_rank_of_a_pipeline_has_its_trace_and_waits_are_seen(rank_server, shards, tmp_path):
    given = {"shards": str(shards), "layout": {"pipeline": 2}}
    program = "contentv.tests.engine.rank_programs:profiled"
    losses, _ = rank_server.run(2, program, folder=str(tmp_path / "profiled"), steps="3:4", **given)
    plain, _ = rank_server.run(2, program, folder=str(tmp_path / "plain"), steps="", **given)
    assert losses == plain and len(losses) == 4
    folder = profile_folder(tmp_path / "profiled", "3:4")
    assert sorted(path.name for path in folder.iterdir()) == [trace_file(folder, rank).name for rank in (0, 1)]
    first, last = (read_trace(trace_file(folder, rank)) for rank in (0, 1))
    assert (first.roles["pipeline"], last.roles["pipeline"]) == (0, 1)
    assert first.blocks.keys() == {0} and last.blocks.keys() == {1}
    assert "embed" in first.forward and "loss" not in first.forward
    assert "loss" in last.forward and "embed" not in last.forward
    # The first stage waits for the last one's gradients, and neither is told by a range.
    assert first.forward[BUBBLE] > 0 and first.forward[EXPOSED] > 0


def test_a_profile_that_lies_behind_the_run_says_so(shards, tmp_path, capsys):
    run(tmp_path, shards, trainer={"max_steps": 2})
    run(tmp_path, shards, "1:2", trainer={"max_steps": 3})
    assert "nothing is profiled: steps 1:2 lie before step 2" in capsys.readouterr().err
    assert not profile_folder(tmp_path, "1:2").exists()


def test_off_makes_no_range_and_touches_no_object(shards, tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("a run without a profile made a range")

    for name in ("record_function", "ranges", "marked", "_opening"):
        monkeypatch.setattr(profile, name, never)
    monkeypatch.setattr(Recorder, "range", never)
    monkeypatch.setattr(Recorder, "start", never)
    assert len(run(tmp_path, shards)) == 4


def test_after_a_step_every_function_is_what_it_was(shards, tmp_path):
    session = open_session(small_config(tmp_path, shards))
    before = [vars(owner).copy() for owner, _, _ in parts(session)]
    with pytest.raises(KeyError), ranges(session, profile.record_function):
        assert all(attribute in vars(owner) for owner, attribute, _ in parts(session))
        raise KeyError
    assert [vars(owner) for owner, _, _ in parts(session)] == before
    outside = Profile(session)
    assert outside.step(1) is outside.step(2)


@pytest.mark.parametrize("steps", ["13:10", "0:3", "3", "a:b", "1:2:3", "-1:2", "1:" + "9" * 30])
def test_impossible_steps_are_refused(steps):
    with pytest.raises(ValueError, match=r"profile\.steps is .* FIRST:LAST"):
        ProfileConfig(steps=steps)


def test_steps_beyond_the_run_are_refused_before_torch_is_imported():
    line = (
        "import sys; from contentv.launchers import train; status = train.main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(status)"
    )
    given = ["quickstart", "--trainer.max-steps", "12", "--profile.steps", "10:13"]
    child = subprocess.run([sys.executable, "-c", line, *given], capture_output=True, text=True, timeout=60)
    assert child.returncode == 2
    assert "profile.steps is 10:13, but trainer.max_steps is 12" in child.stderr


def test_another_tool_leaves_no_trace_of_torchs(shards, tmp_path):
    config = replace(small_config(tmp_path, shards), profile=ProfileConfig(steps="2:3", tool="nsys"))
    assert train(config, StopSignals()).complete
    assert not (tmp_path / "profile").exists()
