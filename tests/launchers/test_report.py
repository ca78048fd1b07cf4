"""`contentv report`: the page holds what the run did, in a real browser; two runs part where they part."""

import gzip
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from contentv.engine.config import ProfileConfig
from contentv.engine.report.facts import read_run
from contentv.engine.report.page import page
from contentv.engine.report.plan import planned
from contentv.engine.report.roof import DeviceRoof, judge, multiplications
from contentv.engine.report.trace import BUBBLE, EXPOSED, OTHER, Intervals, read_trace
from contentv.engine.run_files import profile_folder, trace_file
from contentv.engine.signals import StopSignals
from contentv.engine.trainer import train
from contentv.launchers import report
from tests.engine.small_run import small_config, write_shards

ROOF = DeviceRoof(copy_gbs=10.0, product_tflops=0.1, source="a test")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A small run with profiled steps, a restart record and a contact sheet."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("report")
    config = small_config(
        folder / "run", write_shards(folder / "shards"), trainer={"max_steps": 5, "validate_every": 2, "peak_tflops": 1}
    )
    train(replace(config, profile=ProfileConfig(steps="2:4")), StopSignals())
    jobs = [
        {"event": "start", "attempt": 1, "job": "17", "nodes": ["a", "b"], "step": 0, "time": 1000.0},
        {"event": "end", "attempt": 1, "status": 1, "step": 3, "reason": "rank 1 <b>died", "next": "again",
         "bad_nodes": [], "time": 1010.0},
        {"event": "start", "attempt": 2, "job": "17", "nodes": ["a", "c"], "step": 3, "time": 1020.0},
        {"event": "end", "attempt": 2, "status": 0, "step": 5, "reason": "complete at step 5", "next": "complete",
         "bad_nodes": [], "time": 1030.0},
    ]  # fmt: skip
    (folder / "run" / "restarts.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs) + '{"event": "st')
    Image.new("RGB", (64, 32), "teal").save(folder / "run" / "contact_sheet.png")
    return folder / "run"


@pytest.fixture(scope="module")
def facts(run):
    return read_run(run)


@pytest.fixture(scope="module")
def rank(facts):
    return facts.ranks[0]


def test_every_moment_of_a_step_has_its_part(rank):
    assert rank.steps == [3, 4] and (rank.rank, rank.world, rank.device) == (0, 1, "cpu")
    # Parts and waiting are a partition of the step: nothing twice, nothing lost.
    assert sum(rank.forward.values()) + sum(rank.backward.values()) == pytest.approx(rank.seconds, rel=1e-6)
    assert {"data", "noise", "embed", "attention", "mlp", "norm", "head", "loss", "optimizer"} <= rank.forward.keys()
    # By autograd's numbers alone: no range is open in backward.
    assert {"attention", "mlp", "norm", "head", "loss"} <= {part for part, time in rank.backward.items() if time > 0}
    assert rank.blocks.keys() == {0, 1} and all(seconds > 0 for seconds in rank.blocks.values())
    assert rank.forward[OTHER] + rank.backward.get(OTHER, 0) < 0.5 * rank.seconds


def test_operations_and_memory_are_those_of_the_steps(rank):
    names = [operation.name for operation in rank.operations]
    assert any("matrix_product" in name for name in names) and any("joint_attention" in name for name in names)
    seconds = [operation.seconds for operation in rank.operations]
    assert seconds == sorted(seconds, reverse=True) and sum(seconds) < rank.seconds * len(rank.steps)
    assert max(mib for _, mib in rank.memory) > 0.1
    assert all(0 <= moment <= 1.001 * rank.seconds * len(rank.steps) for moment, _ in rank.memory)
    judged = judge(rank.operations, ROOF)
    assert any(each.share is not None and each.gflops > 0 for each in judged)


def event(name, start, end, *, tid=1, cat="cpu_op", **arguments):
    return {"ph": "X", "name": name, "ts": start, "dur": end - start, "tid": tid, "cat": cat, "args": arguments}


def written(folder, events):
    """A trace made by hand, read."""
    facts = {"rank": 0, "world": 2, "device": "cpu", "roles": {}, "precision": "fp32"}
    path = trace_file(folder, 0)
    with gzip.open(path, "wt") as file:
        json.dump({"contentv": facts, "traceEvents": events}, file)
    return read_trace(path)


def microseconds(parts) -> dict[str, int]:
    return {part: round(1e6 * seconds) for part, seconds in parts.items()}


def test_sending_is_hidden_exposed_or_a_bubble(tmp_path):
    events = [
        event("step 7", 0, 1000, cat="user_annotation"),
        event("data", 0, 100, cat="user_annotation"),
        event("block 3", 100, 500, cat="user_annotation"),
        event("block 3 mlp", 100, 400, cat="user_annotation"),
        event("aten::mm", 100, 300, **{"Sequence number": 5, "Input Dims": [[4, 2], [2, 8]], "Input type": []}),
        event("gloo:all_reduce", 250, 350, tid=2, cat="user_annotation"),
        event("gloo:recv", 600, 700, tid=2, cat="user_annotation"),
        event("autograd::engine::evaluate_function: Mm", 700, 900, **{"Sequence number": 5, "Fwd thread id": 1}),
        event("aten::mm", 720, 880),
    ]  # fmt: skip
    found = written(tmp_path, events)
    assert microseconds(found.forward) == {"data": 100, "mlp": 250, "block": 100, EXPOSED: 50, BUBBLE: 100, OTHER: 200}
    assert microseconds(found.backward) == {"mlp": 200} and microseconds(found.blocks) == {3: 550}
    assert round(1e6 * found.hidden) == 50
    assert [(operation.calls, round(1e6 * operation.seconds)) for operation in found.operations] == [(1, 200), (1, 160)]


def test_on_a_gpu_the_devices_time_is_divided_not_the_hosts(tmp_path):
    launch = {"cat": "cuda_runtime"}
    events = [
        event("step 4", 0, 1000, cat="user_annotation"),
        event("block 0 attention", 10, 60, cat="user_annotation"),
        event("aten::mm", 20, 40, **{"Sequence number": 1}),
        event("cudaLaunchKernel", 25, 30, **launch, correlation=7),
        # Backward runs in a thread of autograd's, and knows its part by the number alone.
        event("autograd::engine::evaluate_function: Mm", 70, 90, tid=9, **{"Sequence number": 1, "Fwd thread id": 1}),
        event("aten::mm", 72, 88, tid=9),
        event("cudaLaunchKernel", 75, 80, tid=9, **launch, correlation=8),
        event("gemm", 200, 400, tid=100, cat="kernel", correlation=7),
        event("gemm", 500, 800, tid=100, cat="kernel", correlation=8),
        event("ncclDevKernel_AllReduce", 350, 480, tid=101, cat="kernel"),
    ]
    found = written(tmp_path, events)
    assert microseconds(found.forward) == {"attention": 200, EXPOSED: 80, BUBBLE: 0, OTHER: 420}
    assert microseconds(found.backward) == {"attention": 300} and round(1e6 * found.hidden) == 50
    assert [(each.name, each.calls, round(1e6 * each.seconds)) for each in found.operations] == [("aten::mm", 2, 500)]


def test_a_damaged_trace_is_named(run, tmp_path):
    path = trace_file(tmp_path, 0)
    whole = trace_file(profile_folder(run, "2:4"), 0).read_bytes()
    wrong_kinds = {"contentv": {}, "traceEvents": [{"ts": "now", "name": 7, "cat": []}]}
    wrong = {"traceEvents": []}, wrong_kinds, {"contentv": {}, "traceEvents": []}, 7
    damaged = [whole[:5000], b"", b"plain", whole[:100] + b"x" * 900 + whole[1000:]]
    for content in [*damaged, *(gzip.compress(json.dumps(each).encode()) for each in wrong)]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is no trace that a profiled run left .*: remove it, or profile again"):
            read_trace(path)


def test_a_line_without_its_values_is_named(copy, capsys):
    change(copy, 3, "memory", lambda value: None)
    status, printed = command(capsys, copy)
    assert status == 2 and "the line of step 3 has no memory that is a number" in printed.err


def test_intervals_are_joined():
    joined = Intervals([(5, 6), (0, 2), (1, 3)])
    assert joined.overlap(0, 10) == 4 and joined.overlap(2.5, 5.5) == 1 and joined.overlap(3, 5) == 0


def test_multiplications_of_known_shapes():
    assert multiplications("contentv::matrix_product_cpu_native", [[3, 5], [5, 7], []]) == 2 * 3 * 5 * 7
    assert multiplications("aten::addmm", [[7], [3, 5], [5, 7]]) == 2 * 3 * 5 * 7
    query, key = [2, 4, 6, 8], [2, 4, 9, 8]
    assert multiplications("contentv::joint_attention_cpu_native", [query, key, key, []]) == 4 * 2 * 4 * 6 * 9 * 8
    backward = [query, [], query, key, key, query, [2, 4, 6], []]
    assert multiplications("contentv::joint_attention_cpu_native_backward", backward) == 8 * 2 * 4 * 6 * 9 * 8


def test_restarts_and_goodput_are_those_of_the_bookkeeping(run, facts):
    kept = sum(line["seconds"] for line in facts.training)
    assert facts.goodput["goodput"] == pytest.approx(kept / 30, abs=1e-4)
    text = page(facts, None, None)
    assert "0 to 3" in text and "a, c" in text


def test_a_plan_stands_beside_what_was_measured(facts):
    prediction = planned(facts)
    assert (prediction.world, prediction.hardware.key, prediction.shape.video_tokens) == (1, "cpu", 12)
    text = page(facts, None, prediction)
    assert "Planned and measured" in text and "optimizer, seconds a step" in text
    assert "Planned and measured" not in page(facts, None, None)


def test_without_a_profile_or_its_shards_a_run_has_no_plan(copy, facts, tmp_path):
    assert planned(read_run(copy)) is None
    elsewhere = replace(facts.config, data=replace(facts.config.data, folder=str(tmp_path / "gone")))
    assert planned(replace(facts, config=elsewhere)) is None


@pytest.fixture(scope="module")
def chromium() -> str:
    """Debian's browser, installed where that is possible."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None and shutil.which("apt-get"):
        command = ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]
        subprocess.run(command, capture_output=True, timeout=240, stdin=subprocess.DEVNULL)
        found = shutil.which("chromium")
    if found is None:
        pytest.skip("there is no chromium, and apt-get could not install it")
    return found


def test_a_browser_renders_it_without_an_error_or_a_request(facts, tmp_path, chromium):
    out, text = tmp_path / "page.html", page(facts, ROOF, None)
    out.write_text(text, encoding="utf-8")
    for words in ("Where a step&#x27;s time goes", "Slowest operations of rank 0", "Memory over the step"):
        assert words in text.replace("step's", "step&#x27;s")
    assert "rank 1 &lt;b&gt;died" in text and "<b>died" not in text
    assert not re.search(r'(src|href)="(?!data:)', text) and "url(" not in text and "http" not in text.replace(
        "http-equiv", "").replace("http://www.w3.org/2000/svg", "")  # fmt: skip
    picture, measured = tmp_path / "page.png", tmp_path / "measured.html"
    # What only the page knows (its width, what it fetched) it tells in its title.
    probe = "<script>document.title = JSON.stringify([document.documentElement.scrollWidth, innerWidth, " \
            "document.querySelectorAll('svg').length, document.querySelector('img').naturalWidth, " \
            "performance.getEntriesByType('resource').filter(each => !each.name.startsWith('data:')).length])" \
            "</script></body>"  # fmt: skip
    measured.write_text(text.replace("</body>", probe), encoding="utf-8")
    options = [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
               f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr"]  # fmt: skip
    child = subprocess.run(
        [*options, "--window-size=800,1200", f"--screenshot={picture}", out.as_uri()],
        capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert child.returncode == 0 and "CONSOLE" not in child.stderr, child.stderr
    assert picture.stat().st_size > 20_000
    dumped = subprocess.run(
        [*options, "--window-size=800,1200", "--dump-dom", measured.as_uri()],
        capture_output=True,
        text=True,
        timeout=90,
    )
    width, window, drawings, image, fetched = json.loads(re.search(r"<title>(.*?)</title>", dumped.stdout)[1])
    # Four of the training, one of parts, one of memory; and the roofline, if a product is among the slowest.
    assert width <= window and drawings in (6, 7) and image == 64 and fetched == 0


def command(capsys, *arguments):
    status = report.main([str(each) for each in arguments])
    return status, capsys.readouterr()


def test_the_command_writes_into_the_run_and_tells_figures(run, capsys):
    status, printed = command(capsys, run, "--json")
    figures = json.loads(printed.out)
    assert status == 0 and Path(figures["report"]) == run / "report.html" and (run / "report.html").is_file()
    assert figures["steps"] == 5 and figures["complete"] and figures["profile"] == "steps-2-4"
    assert figures["ranks"][0]["peak_mib"] > 0


def test_the_command_writes_where_it_is_told(copy, tmp_path, capsys):
    status, printed = command(capsys, copy, "--out", tmp_path / "elsewhere.html")
    assert status == 0 and printed.out == f"{tmp_path / 'elsewhere.html'}\n"
    assert (tmp_path / "elsewhere.html").is_file() and not (copy / "report.html").exists()


@pytest.fixture
def copy(run, tmp_path) -> Path:
    return Path(
        shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints", "profile", "*.html"))
    )


def change(folder: Path, step: int, name: str, by) -> None:
    path = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line["step"] == step and name in line:
            line[name] = by(line[name])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_equal_runs_are_equal_to_the_bit(run, copy, capsys):
    change(copy, 2, "seconds", lambda value: 2 * value)
    status, printed = command(capsys, run, copy)
    assert status == 0 and "equal to the bit over all shared steps, 1 to 5" in printed.out
    assert "configurations: the same" in printed.out


def test_runs_part_at_the_first_bit_and_beyond_the_tolerance(run, copy, tmp_path, capsys):
    change(copy, 3, "loss", lambda value: math.nextafter(value, 9))
    change(copy, 5, "loss", lambda value: value * 1.01)
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("learning_rate: 0.001", "learning_rate: 0.002"))
    status, printed = command(capsys, run, copy, "--json", "--out", tmp_path / "two.html")
    found = json.loads(printed.out)
    assert status == 0 and (found["first_bit"]["step"], found["first_bit"]["value"]) == (3, "loss")
    assert found["first_beyond_tolerance"]["step"] == 5 and found["shared_steps"] == [1, 5]
    assert found["largest_relative"] == pytest.approx(0.01 / 1.01)
    assert found["configuration"] == {"optimizer.learning_rate": [0.001, 0.002]}
    assert "optimizer.learning_rate" in (tmp_path / "two.html").read_text()
    assert (
        json.loads(command(capsys, run, copy, "--json", "--tolerance", "0.1")[1].out)["first_beyond_tolerance"] is None
    )


def test_a_validation_and_a_nan_are_compared_too(run, copy, capsys):
    change(copy, 2, "validation_loss", lambda value: value + 1)
    assert json.loads(command(capsys, run, copy, "--json")[1].out)["first_bit"]["value"] == "validation_loss"
    change(copy, 1, "loss", lambda value: "nan")
    found = json.loads(command(capsys, run, copy, "--json")[1].out)
    assert found["first_bit"]["second"] == "nan" and found["first_beyond_tolerance"]["relative"] == "inf"


@pytest.mark.parametrize("wrong, words", [
    (["nowhere"], "nowhere is no folder"),
    ([".", ".", "."], "3 runs were given"),
    (["."], "holds no config.yaml"),
    ([".", "--tolerance", "-1"], "--tolerance is -1.0"),
    ([".", "--out", "."], "which is a folder"),
])  # fmt: skip
def test_mistakes_are_refused(wrong, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status, printed = command(capsys, *wrong)
    assert status == 2 and words in printed.err and printed.out == ""
    assert not list(tmp_path.iterdir())
