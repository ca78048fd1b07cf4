"""Videos to shards: what is stored is what the stored codec says of the right frames; nothing is done or lost twice."""

import csv
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from contentv.engine.data import encode_videos as module
from contentv.engine.data.buckets import Buckets
from contentv.engine.data.encode_videos import REPORT_FILE, encode_videos
from contentv.engine.data.encoding_part import claim
from contentv.engine.data.encoding_plan import PART, WORK_FOLDER, EncodingRequest, make_plan
from contentv.engine.data.manifest import MANIFEST_FILE, Bucket
from contentv.engine.data.shards import ShardDataset
from contentv.engine.data.source_video import cut, look, read_cut
from contentv.engine.video import to_pixels
from contentv.launchers import encode
from contentv.model.codecs import load_codec
from contentv.model.text import load_text
from contentv.parallel.reading import file_sha256
from tests.engine.data.videos import level, write_levels

CLIPS = PART + 8
"""Two parts."""
BUCKETS = Buckets(frames=(5, 1), height=32, width=48, fps=5.0)
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the processes that are started here have: another number of threads adds products up in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """A folder of clips, and among them everything that cannot be used."""
    folder = tmp_path_factory.mktemp("videos")
    rows = []
    for number in range(CLIPS):
        size = (48, 64) if number % 2 else (64, 48)
        name = f"{number % 3}/clip{number:02d}.mp4"
        write_levels(folder / name, 12, size=size, brightness=lambda frame, first=number: level(frame + first))
        rows.append((name, f"caption {number % 4}"))
    (folder / "broken.mp4").write_bytes((folder / rows[0][0]).read_bytes()[:300])
    write_levels(folder / "black.mp4", 12, brightness=lambda _: 0)
    write_levels(folder / "silent.mp4", 12)
    write_levels(folder / "small.mp4", 12, size=(16, 16))
    rows += [("broken.mp4", "x"), ("black.mp4", "x"), ("small.mp4", "x"), ("empty.mp4", ""), ("gone.mp4", "x")]
    (folder / "notes.txt").write_text("not looked at")
    with open(folder / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "caption"), *rows])
    return folder


def request(videos: Path, **changes) -> EncodingRequest:
    values = {"codec": "pca", "text": "minilm", "buckets": BUCKETS, "windows": 2, "held_out": 0.1}
    return EncodingRequest(videos=str(videos), captions=str(videos / "captions.csv"), **values | changes)


def run(videos: Path, folder: Path, **changes):
    return encode_videos(request(videos, **changes), folder, workers=2, device=CPU)


@pytest.fixture(scope="module")
def whole(videos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "shards"
    return folder, run(videos, folder)


def content(folder: Path) -> dict[str, str]:
    files = [*folder.glob("*.tar"), folder / MANIFEST_FILE, folder / REPORT_FILE]
    return {path.name: file_sha256(path) for path in files}


def test_every_window_is_there_as_the_saved_codec_and_encoder_say(videos, whole):
    folder, outcome = whole
    codec, text, plan = load_codec(folder / "codec"), load_text("minilm"), make_plan(request(videos))
    assert outcome.clips == CLIPS and outcome.frames == CLIPS * 2 * 5 and not outcome.reused
    seen = {}
    for split in ("train", "held_out"):
        dataset = ShardDataset(folder, split)
        dataset.verify()
        assert set(dataset.buckets) <= {Bucket(5, 32, 48), Bucket(5, 48, 32)}
        for ids in dataset.samples().values():
            for sample in ids:
                seen[sample] = split, dataset.read([sample]), dataset.facts(sample)
    usable = [clip for clip in plan.clips if clip.file[0].isdigit()]
    assert sorted(seen) == sorted(2 * clip.number + window for clip in usable for window in range(2))
    assert 0 < sum(split == "held_out" for split, _, _ in seen.values()) < CLIPS
    for clip in usable[::7]:
        path = videos / clip.file
        planned = cut(look(path), BUCKETS, 0.0, None, 2)
        for number, frames in enumerate(read_cut(path, planned)):
            split, batch, facts = seen[2 * clip.number + number]
            assert split == clip.split and batch.captions == (clip.caption,)
            assert (facts["clip"], facts["begin"]) == (clip.file, round(planned.starts[number], 6))
            expected = codec.encode(to_pixels(frames)[None])
            torch.testing.assert_close(batch.latents_BCFYX, expected, rtol=1e-4, atol=1e-4)
            assert torch.equal(batch.tokens_BTW, text.encode([clip.caption])[0])


def test_what_cannot_be_used_is_listed_with_its_reason(whole):
    folder, outcome = whole
    with open(folder / REPORT_FILE, newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert len(rows) == CLIPS + 6 and "notes.txt" not in rows
    reasons = {"broken.mp4": "unreadable", "black.mp4": "black", "silent.mp4": "no caption", "small.mp4": "too small",
               "empty.mp4": "no caption", "gone.mp4": "no file"}  # fmt: skip
    assert {name: rows[name]["outcome"] for name in reasons} == reasons and all(rows[name]["detail"] for name in rows)
    assert outcome.refused == {"black": 1, "no caption": 2, "no file": 1, "too small": 1, "unreadable": 1}
    assert rows["1/clip01.mp4"]["outcome"] == "encoded" and rows["1/clip01.mp4"]["detail"] == "2 of 5x32x48"


def test_again_nothing_is_done_and_something_else_is_refused(videos, whole, tmp_path):
    folder, first = whole
    before = content(folder)
    again = run(videos, folder)
    assert again.reused and again.refused == first.refused and content(folder) == before
    for change, words in (
        ({"windows": 3}, "begun with windows 2, but now it is 3"),
        ({"codec": "wan"}, "begun with codec pca, but now it is wan"),
        ({"buckets": Buckets(frames=(9,), height=32, width=48, fps=5.0)}, "begun with buckets"),
    ):
        with pytest.raises(ValueError, match=words):
            run(videos, folder, **change)
    other = tmp_path / "captions.csv"
    other.write_text((videos / "captions.csv").read_text().replace("caption 3", "caption three"))
    changed = EncodingRequest(**{**vars(request(videos)), "captions": str(other)})
    with pytest.raises(ValueError, match="begun with clip .*'caption 3'\\), but now it is .*'caption three'"):
        encode_videos(changed, folder, workers=1, device=CPU)
    assert content(folder) == before


def test_a_part_goes_on_wherever_it_was_cut_off(videos, whole, tmp_path):
    """Every possible moment of a kill: half a line in the journal, a sample in the shard that no line speaks of."""
    folder, _ = whole
    journal = (folder / WORK_FOLDER / "part-00001.jsonl").read_bytes()
    lines = journal.splitlines(keepends=True)
    for kept, torn in ((0, b""), (1, b'{"clip": 3'), (4, b""), (len(lines) - 1, b"{")):
        copy = tmp_path / f"cut{kept}"
        for path in folder.rglob("*"):
            if path.is_file() and path.name not in (MANIFEST_FILE, REPORT_FILE):
                (copy / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
                (copy / path.relative_to(folder)).write_bytes(path.read_bytes())
        (copy / WORK_FOLDER / "part-00001.jsonl").write_bytes(b"".join(lines[:kept]) + torn)
        outcome = run(videos, copy)
        assert content(copy) == content(folder)
        assert outcome.clips == sum(b'"samples": [{' in line for line in lines[kept:])


def test_shards_shorter_than_their_journal_are_refused(videos, whole, tmp_path):
    folder, _ = whole
    copy = tmp_path / "copy"
    (copy / WORK_FOLDER).mkdir(parents=True)
    for name in ("plan.json", "part-00000.jsonl"):
        (copy / WORK_FOLDER / name).write_bytes((folder / WORK_FOLDER / name).read_bytes())
    load_codec(folder / "codec").save(copy / "codec")
    journal = copy / WORK_FOLDER / "part-00000.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:5]))
    with pytest.raises(ValueError, match="is shorter than what .* says was written: remove"):
        run(videos, copy)
    journal.write_text("nonsense\n")
    with pytest.raises(ValueError, match="line 1 was altered: remove the file to encode"):
        run(videos, copy)


def test_a_part_belongs_to_one_process_at_a_time(videos, tmp_path):
    clips = make_plan(request(videos)).clips
    with claim(0, clips, tmp_path, tmp_path) as mine:
        assert mine is not None
        with claim(0, clips, tmp_path, tmp_path) as second:
            assert second is None
        with claim(1, clips, tmp_path, tmp_path) as other:
            assert other is not None
    with claim(0, clips, tmp_path, tmp_path) as later:
        assert later is not None


def test_nothing_that_can_be_used_is_an_error_that_says_why(tmp_path):
    write_levels(tmp_path / "videos" / "black.mp4", 12, brightness=lambda _: 0)
    (tmp_path / "videos" / "captions.jsonl").write_text('{"file": "black.mp4", "caption": "night"}\n')
    made = request(tmp_path / "videos", codec="pca")
    made = EncodingRequest(**{**vars(made), "captions": str(tmp_path / "videos" / "captions.jsonl")})
    with pytest.raises(ValueError, match=r"none of 1 clips gives one \(black.mp4 is black: over 99%"):
        encode_videos(made, tmp_path / "out", workers=1, device=CPU)
    assert not (tmp_path / "out" / MANIFEST_FILE).exists()


def test_what_a_decoder_did_not_expect_is_no_refusal(videos, tmp_path, monkeypatch):
    """Neither while the codec is fitted nor while clips are encoded may a clip go missing in silence."""

    def fail(path, planned):
        if path.name == "clip07.mp4":
            raise RuntimeError("unexpected")
        return read_cut(path, planned)

    monkeypatch.setattr(module, "read_cut", fail)
    for begun in (False, True):
        if begun:
            with monkeypatch.context() as context:
                context.setattr(module, "_work_until_done", lambda *_: 1 / 0)
                context.setattr(module, "read_cut", read_cut)
                with pytest.raises(ZeroDivisionError):
                    run(videos, tmp_path)
        with pytest.raises(RuntimeError, match="unexpected"):
            run(videos, tmp_path)
        assert begun == (tmp_path / WORK_FOLDER / "plan.json").exists()


def test_the_codec_is_measured_on_the_first_clip_that_can_be_used(videos, tmp_path):
    copy = tmp_path / "videos"
    shutil.copytree(videos, copy)
    train = [clip.file for clip in make_plan(request(copy)).clips if clip.split == "train"]
    for file in train[:3]:
        (copy / file).write_bytes(b"broken")
    run(copy, tmp_path / "shards")
    dataset = ShardDataset(tmp_path / "shards")
    facts = [dataset.facts(sample) for ids in dataset.samples().values() for sample in ids]
    measured = [fact["clip"] for fact in facts if "codec_psnr_db" in fact]
    assert len(measured) == 2 and train[3] in measured


def test_what_is_spoken_of_is_on_disk_before(videos, tmp_path, monkeypatch):
    """So that a loss of power leaves no journal, plan or manifest of what went with it."""
    synced, fsync = [], os.fsync

    def note(descriptor):
        fsync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append((path.name, path.stat().st_size))

    monkeypatch.setattr(os, "fsync", note)
    run(videos, tmp_path)
    sizes = {path.name: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}
    order = {
        f".{MANIFEST_FILE}.partial": [name for name in sizes if name.endswith((".tar", ".jsonl", ".safetensors"))],
        ".plan.json.partial": ["codec.json", "codec.safetensors"],
        "part-00001.jsonl": [name for name in sizes if name.endswith("-00001.tar")],
    }
    for name, earlier in order.items():
        before = synced[: max(place for place, each in enumerate(synced) if each[0] == name)]
        assert len(earlier) > 1 and all((each, sizes[each]) in before for each in earlier), name


def test_a_full_disk_is_told_and_gone_on_from(videos, whole, tmp_path, capfd):
    folder = tmp_path / "shards"
    shutil.copytree(whole[0] / "codec", folder / "codec")
    (folder / WORK_FOLDER).mkdir()
    shutil.copy(whole[0] / WORK_FOLDER / "plan.json", folder / WORK_FOLDER)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    try:
        assert encode.main(command(videos, folder)[1:]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capfd.readouterr().err
    assert "error: writing: File too large: free what is missing" in said and "Traceback" not in said
    assert encode.main(command(videos, folder)[1:]) == 0
    assert content(folder) == content(whole[0])


def command(videos: Path, folder: Path) -> list[str]:
    return ["encode", str(videos), "--captions", str(videos / "captions.csv"), "--codec", "pca", "--text", "minilm",
            "--out", str(folder), "--frames", "5", "1", "--size", "32", "48", "--fps", "5", "--windows", "2",
            "--held-out", "0.1", "--workers", "1", "--json"]  # fmt: skip


def test_what_another_process_leaves_is_taken_over(videos, whole, tmp_path):
    folder = tmp_path / "shards"
    (folder / WORK_FOLDER).mkdir(parents=True)
    with ThreadPoolExecutor(1) as pool:
        with claim(1, make_plan(request(videos)).parts()[1], folder, folder / WORK_FOLDER):
            running = pool.submit(run, videos, folder)
            finished = folder / WORK_FOLDER / "part-00000.jsonl"
            while not (finished.exists() and b'"shards"' in finished.read_bytes()):
                assert not running.done()
                time.sleep(0.01)
            assert not running.done() and not (folder / MANIFEST_FILE).exists()
        assert running.result(timeout=60).clips == CLIPS
    assert content(folder) == content(whole[0])


def test_processes_share_the_work_and_survive_a_kill(videos, whole, tmp_path):
    """The first of three is killed in the middle of a part; the other two finish, and all bytes are those of one."""
    folder = tmp_path / "shared"
    line = [sys.executable, "-m", "contentv.launchers.contentv", *command(videos, folder)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    options["env"] = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen(line, **options)]
    try:
        journal = folder / WORK_FOLDER / "part-00000.jsonl"
        while not (journal.exists() and journal.stat().st_size) and processes[0].poll() is None:
            time.sleep(0.001)
        processes[0].send_signal(signal.SIGKILL)
        assert processes[0].wait() == -signal.SIGKILL and b'"shards"' not in journal.read_bytes()
        processes += [subprocess.Popen(line, **options) for _ in range(2)]
        results = [process.communicate(timeout=120) for process in processes[1:]]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes[1:]] == [0, 0], results
    summaries = [json.loads(out) for out, _ in results]
    assert summaries[0]["samples"] == summaries[1]["samples"] == whole[1].manifest.counts()
    assert content(folder) == content(whole[0])
    assert any("clips a second" in said for _, said in results)


def test_the_command(videos, whole, capsys):
    folder, outcome = whole
    assert encode.main(command(videos, folder)[1:]) == 0
    printed = capsys.readouterr()
    facts = json.loads(printed.out)
    assert facts["reused"] and facts["samples"] == outcome.manifest.counts() and facts["refused"] == outcome.refused
    assert "not used: 1 black, 2 no caption" in printed.err and "report.csv" in printed.err
