"""What a person looks at: a video a caption under a name of its own, the sheet, the loss curve."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from contentv.engine.pictures import file_name, write_loss_curve, write_samples, write_sheet
from contentv.engine.video import read_frames


def video(level, frames=5):
    return torch.full((3, frames, 32, 48), level)


@pytest.mark.parametrize(
    ("caption", "name"),
    [
        ("A dog, running over grass!", "a-dog-running-over-grass"),
        ("../../etc/passwd", "etc-passwd"),
        ("", "caption"),
        ("犬", "caption"),
        ("word " * 30, ("word-" * 30)[:59]),
    ],
)
def test_a_caption_becomes_a_plain_file_name(caption, name):
    assert file_name(caption) == name


def test_captions_that_shorten_to_one_name_keep_a_file_each(tmp_path):
    samples = {f"{'a very long caption ' * 4}{end}": video(level) for end, level in (("one", -0.5), ("two", 0.5))}
    paths = write_samples(tmp_path, samples | {"another": video(0.0)}, fps=8)
    assert len(set(paths)) == 3 and sorted((tmp_path / "samples").iterdir()) == sorted(paths)
    for path, level in zip(paths, (-0.5, 0.5, 0.0), strict=True):
        frames = [frame.float().mean().item() / 127.5 - 1 for _, frame in read_frames(path)]
        assert frames == pytest.approx([level] * 5, abs=0.03)


def test_the_sheet_shows_each_samples_own_source_above_it(tmp_path):
    sources = {"dark": video(-0.8, frames=9), "light": video(0.8, frames=9), "not sampled": video(0.0)}
    path = write_sheet(tmp_path, sources, {"light": video(0.4), "dark": video(-0.4)})
    rows = np.asarray(Image.open(path)).astype(float)[:, 20, 0] / 127.5 - 1
    grey = [round(float(value), 1) for value in rows if value < 0.9]
    seen = [value for index, value in enumerate(grey) if not index or grey[index - 1] != value]
    assert [value for value in seen if value in (-0.8, -0.4, 0.4, 0.8)] == [0.8, 0.4, -0.8, -0.4]


@pytest.mark.parametrize("steps", [3, 40])
def test_the_loss_curve_is_drawn_for_short_and_long_runs(tmp_path, steps):
    lines = [{"step": step, "loss": 2.0 / step} for step in range(1, steps + 1)]
    lines.insert(2, {"step": 2, "validation_loss": 1.5})
    lines[0]["loss"] = "nan"
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    picture = np.asarray(Image.open(write_loss_curve(tmp_path)).convert("L"))
    assert min(picture.shape) > 300 and (picture < 200).mean() > 0.01
