"""Which files an encoding takes: names as people have them, and folders that are put together by links."""

import os

import pytest

from contentv.engine.data.buckets import Buckets
from contentv.engine.data.encoding_plan import EncodingRequest, make_plan, read_plan, save_plan


@pytest.fixture
def plan_of(tmp_path):
    def make(*rows: str):
        captions = tmp_path / "captions.csv"
        captions.write_text("\n".join(("file,caption", *rows)))
        buckets = Buckets(frames=(5,), height=32, width=48, fps=5.0)
        videos = str(tmp_path / "videos")
        return make_plan(EncodingRequest(videos=videos, captions=str(captions), codec="pca", text="minilm",
                                         buckets=buckets, windows=1, held_out=0.5))  # fmt: skip

    (tmp_path / "videos").mkdir()
    return make


def write(path, content=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_linked_folders_and_any_suffix_that_a_row_names(plan_of, tmp_path):
    write(tmp_path / "elsewhere/a.MP4", b"four")
    write(tmp_path / "videos/b.mxf")
    write(tmp_path / "videos/notes.txt")
    (tmp_path / "videos/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "videos/loop").symlink_to(".")
    plan = plan_of("linked/a.MP4,x", "b.mxf,y", "c.mp4,z", "loop,w")
    assert [(clip.file, clip.bytes) for clip in plan.clips] == [("b.mxf", 1), ("linked/a.MP4", 4)]
    assert [(each.file, each.kind) for each in plan.unused] == [("c.mp4", "no file"), ("loop", "no file")]


def test_names_that_are_no_utf8_are_told_of(plan_of, tmp_path):
    write(tmp_path / "videos/a.mp4")
    write(tmp_path / "videos" / os.fsdecode(b"caf\xe9.mp4"))
    plan = plan_of("a.mp4,x")
    assert [(each.file, each.kind) for each in plan.unused] == [("caf\\xe9.mp4", "no caption")]
    save_plan(tmp_path, plan)
    assert read_plan(tmp_path) == plan
