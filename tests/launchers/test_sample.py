"""`contentv sample`: from a run, its checkpoint or published weights to a video file of the promised size."""

import av
import pytest
import torch

from contentv.engine.checkpoints import CheckpointFolder
from contentv.engine.sampling import find_checkpoint, open_run, sample_latents
from contentv.engine.video import read_frames, to_bytes
from contentv.launchers import sample
from tests.engine.real_run import SIZE, STEPS


@pytest.fixture
def video(tmp_path, capfd):
    """Runs the command with a file name; the file's bytes. Nothing but progress is printed."""

    def make(source, *options, name="made.mp4"):
        path = tmp_path / "videos" / name
        assert sample.main([str(source), "--prompt", "red waves", "--out", str(path), *options]) == 0
        printed = capfd.readouterr()
        assert printed.out == "" and f"{path}: 5 frames of 32 x 48" in printed.err
        assert [file.name for file in path.parent.iterdir()] == [name]
        content = path.read_bytes()
        path.unlink()
        return content

    return make


def test_a_run_and_its_checkpoint_make_the_same_video(real_run, video):
    checkpoints = CheckpointFolder(real_run)
    made = video(real_run)
    assert video(checkpoints.path(STEPS)) == made
    assert video(checkpoints.path(3)) != made
    assert video(real_run, "--seed", "0", "--guidance", "2", "--steps", "3", "--fps", "8", "--weights", "ema") == made
    changes = (("--seed", "1"), ("--weights", "raw"), ("--guidance", "7"), ("--negative-prompt", "green leaves"))
    others = [video(real_run, *change) for change in changes]
    assert len({made, *others}) == 1 + len(changes)


def test_a_run_in_another_shape_than_its_largest_clips(real_run, tmp_path, capfd):
    path = tmp_path / "made.mp4"
    command = [str(real_run), "--prompt", "red waves", "--out", str(path), "--size"]
    assert sample.main([*command, "9", "48", "32"]) == 0
    assert f"{path}: 9 frames of 48 x 32" in capfd.readouterr().err
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.frames, stream.height, stream.width) == (9, 48, 32)
    assert sample.main([*command, "9", "40", "32"]) == 2
    assert "multiples of 16" in capfd.readouterr().err


def test_the_file_has_the_runs_size_and_rate_and_shows_the_sample(real_run, tmp_path, capfd):
    path = tmp_path / "a" / "new" / "folder" / "made.mp4"
    assert sample.main([str(real_run), "--prompt", "green leaves", "--out", str(path), "--fps", "12.5"]) == 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.height, stream.width) == ("h264", 32, 48)
        assert (stream.frames, float(stream.average_rate)) == (5, 12.5)
    found = find_checkpoint(real_run)
    source = open_run(found, "ema")
    expected = to_bytes(source.codec.decode(sample_latents(source, ["green leaves"], found.config.sample))[0])
    frames = torch.stack([frame for _, frame in read_frames(path)], dim=1)
    # H.264 at this quality halves colour resolution and quantises; the wrong caption is several times as far.
    assert (frames.float() - expected.float()).abs().mean() < 12


def test_published_weights_make_the_video_of_the_run_they_came_from(real_run, video, tmp_path):
    folder = tmp_path / "published"
    open_run(find_checkpoint(real_run), "raw").model.save_pretrained(folder)
    codec = CheckpointFolder(real_run).path(STEPS) / "codec"
    size = [str(length) for length in SIZE]
    options = ["--codec", str(codec), "--text", "minilm", "--size", *size, "--steps", "3"]
    published = video(folder, *options, "--guidance", "2", "--fps", "8")
    assert published == video(real_run, "--weights", "raw")
