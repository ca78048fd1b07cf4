"""`contentv evaluate`: one JSON value on stdout and nothing else; pictures where they are asked for."""

import json
import math
import shutil
from dataclasses import replace

import av
import pytest

from contentv.engine import config_yaml
from contentv.engine.data import windows as window_reader
from contentv.launchers import evaluate
from tests.engine.real_run import CAPTIONS, windows

KEYS = {
    "probe_ratio",
    "held_out_ratio",
    "captions",
    "captions_matched",
    "resume_bit_equal",
    "codec_psnr_db",
    "seconds",
    "peak_rss_mib",
}


def test_json_is_one_value_alone_on_stdout(real_run, capfd):
    before = {path: path.stat().st_mtime_ns for path in real_run.rglob("*")}
    assert evaluate.main([str(real_run), "--json"]) == 0
    printed = capfd.readouterr()
    figures = json.loads(printed.out)
    assert figures.keys() == KEYS and printed.out.count("\n") == 1
    assert "sampling: step 3/3" in printed.err and "time left" in printed.err
    assert figures["captions"] == 3 and figures["resume_bit_equal"] is None
    assert figures["seconds"] is None and figures["peak_rss_mib"] is None
    assert all(math.isfinite(figures[name]) for name in ("probe_ratio", "held_out_ratio", "codec_psnr_db"))
    assert {path: path.stat().st_mtime_ns for path in real_run.rglob("*")} == before

    # Again, with the other weights, as a table.
    assert evaluate.main([str(real_run), "--weights", "raw"]) == 0
    table = dict(line.split(maxsplit=1) for line in capfd.readouterr().out.splitlines())
    assert table.keys() == KEYS and float(table["probe_ratio"]) != figures["probe_ratio"]


@pytest.fixture
def summarised(real_run, tmp_path):
    """A run that `contentv quickstart` has summarised."""
    run = tmp_path / "run"
    shutil.copytree(real_run, run)
    (run / "summary.json").write_text(json.dumps({"seconds": 12.5, "peak_rss_mib": 800.0, "captions": 99}))
    return run


def test_pictures_of_data_that_no_clips_lie_beside(summarised, capfd):
    assert evaluate.main([str(summarised), "--pictures"]) == 2
    assert "clips is no folder of clips that `contentv data` fetched" in capfd.readouterr().err


def test_pictures_and_what_only_the_run_could_measure(summarised, capfd, monkeypatch):
    config = config_yaml.load(summarised / "config.yaml")
    data = replace(config.data, folder=str(summarised / "shards"))
    config_yaml.save(
        replace(config, recipe="quickstart", data=data, sample=replace(config.sample, fps=5.0)), summarised
    )
    (summarised / "clips").mkdir()
    monkeypatch.setattr(
        window_reader, "source_windows", lambda *_: {name: group[2] for name, group in windows().items()}
    )
    assert evaluate.main([str(summarised), "--json", "--pictures"]) == 0
    figures = json.loads(capfd.readouterr().out)
    assert (figures["seconds"], figures["peak_rss_mib"], figures["captions"]) == (12.5, 800.0, 3)
    videos = sorted((summarised / "samples").iterdir())
    assert [path.name for path in videos] == [f"{caption.replace(' ', '-')}.mp4" for caption in CAPTIONS]
    with av.open(str(videos[0])) as container:
        assert (container.streams.video[0].frames, float(container.streams.video[0].average_rate)) == (5, 5.0)
    assert (summarised / "contact_sheet.png").stat().st_size > 1000
    assert (summarised / "loss.png").stat().st_size > 1000
