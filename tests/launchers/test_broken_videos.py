"""`contentv encode` given damaged videos, pictures and captions: each is encoded or listed, every mistake is told.

A damaged clip among millions must not end an encoding, and must not pass for a good one where its damage shows.
"""

import csv
import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from contentv.engine.data.refusal import KINDS
from contentv.engine.data.shards import ShardDataset
from contentv.launchers import encode
from tests.engine.data.videos import write_levels

SEED = 20261125
SHARES = (0.002, 0.01, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 0.999)
FLIPS = 9
FORMATS = ("mp4", "mkv", "mov", "avi", "ts", "png", "jpg", "gif")
SMALL = ("--codec", "pca", "--text", "minilm", "--frames", "5", "1", "--size", "32", "48", "--fps", "5")
SMALL = (*SMALL, "--workers", "2", "--json")


def write_good(folder: Path) -> dict[str, Path]:
    folder.mkdir(parents=True)
    paths = {suffix: folder / f"good.{suffix}" for suffix in FORMATS}
    for suffix in ("mp4", "mkv", "mov", "avi", "ts"):
        write_levels(paths[suffix], 24, key_frames=8, codec="mpeg4" if suffix == "avi" else "libx264")
    noise = torch.randint(0, 255, (48, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    frames = [Image.fromarray(noise).rotate(10 * turn) for turn in range(20)]
    frames[0].save(paths["png"])
    frames[0].save(paths["jpg"])
    frames[0].save(paths["gif"], save_all=True, append_images=frames[1:], duration=100)
    return paths


def write_damaged(good: dict[str, Path]) -> list[str]:
    """Beside each good file: cut short, single bits flipped, zeros in the middle, empty, under another's name."""
    draw, names = random.Random(SEED), []
    for suffix, path in good.items():
        content = path.read_bytes()
        variants = {f"cut{share}": content[: max(1, int(share * len(content)))] for share in SHARES}
        for number in range(FLIPS):
            flipped = bytearray(content)
            # One in three in the header, where a wrong length could ask for gigabytes.
            place = draw.randrange(64 if number % 3 == 0 else len(content))
            flipped[place] ^= 1 << draw.randrange(8)
            variants[f"flip{number}"] = bytes(flipped)
        third = len(content) // 3
        variants |= {"zeros": content[:third] + bytes(third) + content[2 * third :], "empty": b""}
        variants["renamed"] = good[FORMATS[FORMATS.index(suffix) - 1]].read_bytes()
        for name, damaged in variants.items():
            names.append(f"{name}.{suffix}")
            (path.parent / names[-1]).write_bytes(damaged)
    return names


def test_every_damaged_file_is_listed_or_encoded_whole(tmp_path, capfd):
    good = write_good(tmp_path / "videos")
    damaged = write_damaged(good)
    assert len(damaged) == len(FORMATS) * (len(SHARES) + FLIPS + 3) == 168
    names = [*damaged, *(path.name for path in good.values())]
    with open(tmp_path / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "caption"), *((name, f"what {name} shows") for name in names)])
    out = tmp_path / "shards"
    arguments = [str(tmp_path / "videos"), "--captions", str(tmp_path / "captions.csv"), "--out", str(out), *SMALL]
    assert encode.main(arguments) == 0
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err
    with open(out / "report.csv", newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert rows.keys() == set(names)
    assert all(row["outcome"] in ("encoded", *KINDS) and row["detail"] for row in rows.values())
    assert all(rows[path.name]["outcome"] == "encoded" for path in good.values())
    for suffix in FORMATS:
        assert rows[f"empty.{suffix}"]["outcome"] == rows[f"cut0.002.{suffix}"]["outcome"] == "unreadable"
    # Cut to a fifth, no format still has the frames of its header; a picture shows its lower half grey or not at all.
    assert all(rows[f"cut0.2.{suffix}"]["outcome"] != "encoded" for suffix in ("mp4", "mkv", "mov"))
    refused = sum(row["outcome"] != "encoded" for row in rows.values())
    assert refused > len(names) / 4, rows
    for split in ("train", "held_out"):
        dataset = ShardDataset(out, split)
        dataset.verify()
        for ids in dataset.samples().values():
            assert all(torch.isfinite(dataset.read([sample]).latents_BCFYX).all() for sample in ids)


GOOD = "file,caption\nclip.mp4,waves\n"
CAPTIONS = {
    "latin1.csv": GOOD.replace("waves", "gr\xf6\xdfer").encode("latin1"),
    "utf16.csv": GOOD.encode("utf-16"),
    "utf16be.csv": GOOD.encode("utf-16-be"),
    "utf32.csv": GOOD.encode("utf-32"),
    "cut_letter.csv": GOOD.encode() + "clip2.mp4,größe".encode()[:-2],
    "surrogate.csv": GOOD.encode() + b"b.mp4,\xed\xa0\x80\n",
    "overlong.csv": GOOD.encode() + b"b.mp4,\xc0\xaf\n",
    "zero.csv": GOOD.encode() + b"b.mp4,a\0b\n",
    "gzip.csv": b"\x1f\x8b\x08\x00" + bytes(40),
    "empty.csv": b"",
    "blank.csv": b"\n\n\n",
    "header_only.csv": b"file,caption\n",
    "no_header.csv": b"clip.mp4,waves\n",
    "wrong_header.csv": b"path,text\nclip.mp4,waves\n",
    "twice.csv": GOOD.encode() + b"clip.mp4,other\n",
    "semicolons.csv": b"file;caption\nclip.mp4;waves\n",
    "open_quote.csv": b'file,caption\nclip.mp4,"waves\n',
    "bare_quote.csv": b'file,caption\n"clip.mp4"x,waves\n',
    "more.csv": b"file,caption\nclip.mp4,waves,and more\n",
    "long.csv": b"file,caption\nclip.mp4," + b"x" * 300_000 + b"\n",
    "upwards.csv": b"file,caption\n../clip.mp4,waves\n",
    "absolute.csv": b"file,caption\n/clip.mp4,waves\n",
    "other_files.csv": b"file,caption\nanother.mp4,waves\n",
    "begin.csv": b"file,caption,begin\nclip.mp4,waves,early\n",
    "negative.csv": b"file,caption,begin\nclip.mp4,waves,-1\n",
    "backwards.csv": b"file,caption,begin,end\nclip.mp4,waves,2,1\n",
    "nan.csv": b"file,caption,end\nclip.mp4,waves,nan\n",
    "text.txt": GOOD.encode(),
    "json.json": b'[{"file": "clip.mp4", "caption": "waves"}]',
    "list.jsonl": b'[{"file": "clip.mp4", "caption": "waves"}]\n',
    "cut.jsonl": b'{"file": "clip.mp4", "caption": "wav',
    "number.jsonl": b'{"file": "clip.mp4", "caption": 7}\n',
    "null.jsonl": b"null\n",
    "deep.jsonl": b"[" * 200_000 + b"\n",
    "half.jsonl": b'{"file": "clip.mp4", "caption": "\\udc00"}\n',
    "huge.jsonl": b'{"file": "clip.mp4", "caption": "waves", "begin": 1e400}\n',
    "huge_int.jsonl": b'{"file": "clip.mp4", "caption": "waves", "end": 1' + b"0" * 400 + b"}\n",
    "digits.jsonl": b'{"file": "clip.mp4", "caption": "waves", "end": 1' + b"0" * 6000 + b"}\n",
    "latin1.jsonl": '{"file": "clip.mp4", "caption": "größer"}'.encode("latin1"),
    "folder.csv": None,
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_levels(folder / "clip.mp4", 12)
    return folder


def refuse(capfd, arguments, out: Path) -> str:
    try:
        status = encode.main([str(word) for word in arguments])
    except SystemExit as exit:
        status = exit.code
    printed = capfd.readouterr()
    assert status == 2, printed.err
    assert printed.out == "" and "Traceback" not in printed.err and not out.exists()
    message = printed.err[printed.err.rindex("error: ") :]
    assert "\n\n" not in message.strip()
    return message


@pytest.mark.parametrize("name", CAPTIONS)
def test_captions(name, videos, tmp_path, capfd):
    path = tmp_path / name
    if CAPTIONS[name] is None:
        path.mkdir()
    else:
        path.write_bytes(CAPTIONS[name])
    message = refuse(capfd, [videos, "--captions", path, "--out", tmp_path / "out", *SMALL], tmp_path / "out")
    assert name in message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--frames", "4"], "--frames is 4; give one or more of 1, 5, 9"),
        (["--frames", "0"], "--frames is 0"),
        (["--size", "40", "48"], "--size: height is 40 pixels; it must be a multiple of 16"),
        (["--size", "32", "-16"], "--size: width is -16"),
        (["--fps", "0"], "--fps is 0.0"),
        (["--fps", "nan"], "--fps is nan"),
        (["--fps", "fast"], "invalid float value"),
        (["--windows", "0"], "--windows is 0; it must be at least 1"),
        (["--windows", "99999999999"], "are more than 2^32 samples"),
        (["--held-out", "1"], "--held-out is 1.0"),
        (["--held-out", "-0.1"], "--held-out is -0.1"),
        (["--workers", "0"], "--workers is 0"),
        (["--codec", "vae"], "codec 'vae' is neither wan nor a folder"),
        (["--codec", "wan"], "codec wan needs the folder of a Wan VAE"),
        (["--text", "t5"], "text encoder 't5' is not known"),
        (["--text", "sd3"], "text encoder sd3 needs the folder"),
        (["--surprise"], "--surprise"),
    ],
)
def test_options(options, words, videos, tmp_path, capfd, monkeypatch):
    for variable in ("CONTENTV_WAN", "CONTENTV_SD3"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "captions.csv").write_text(GOOD)
    arguments = [videos, "--captions", tmp_path / "captions.csv", "--out", tmp_path / "out", *SMALL, *options]
    assert words in refuse(capfd, arguments, tmp_path / "out")


def test_places(videos, tmp_path, capfd):
    (tmp_path / "captions.csv").write_text(GOOD)
    given = ["--captions", tmp_path / "captions.csv", *SMALL]
    out = tmp_path / "out"
    assert "absent is no folder" in refuse(capfd, [tmp_path / "absent", *given, "--out", out], out)
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "below"
    assert "is not a folder: remove it" in refuse(capfd, [videos, *given, "--out", below], below)
    assert "absent.csv is no file" in refuse(
        capfd, [videos, *SMALL, "--captions", tmp_path / "absent.csv", "--out", out], out
    )


def test_a_folder_whose_work_was_damaged(videos, tmp_path, capfd):
    """Plan, codec and journal of an unfinished encoding, each broken in turn."""
    (tmp_path / "captions.csv").write_text(GOOD)
    whole, out = tmp_path / "whole", tmp_path / "out"
    given = [str(word) for word in (videos, "--captions", tmp_path / "captions.csv", *SMALL)]
    assert encode.main([*given, "--out", str(whole)]) == 0
    (whole / "manifest.json").unlink()
    plan = json.loads((whole / "encoding/plan.json").read_text())
    altered = json.dumps(plan | {"clips": [plan["clips"][0] | {"caption": "storms"}]})
    damages = {
        "encoding/plan.json": ["", "{", "[]", altered, json.dumps({"format": plan["format"]})],
        "codec/codec.json": ["", "{}", "[]"],
        "codec/codec.safetensors": ["", "nothing"],
        "encoding/part-00000.jsonl": ["nonsense\n", "[]\n", '{"clip": 0}\n'],
    }
    for name, contents in damages.items():
        for content in contents:
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(whole, out)
            (out / name).write_text(content)
            assert encode.main([*given, "--out", str(out)]) == 2, (name, content)
            message = capfd.readouterr().err
            assert "Traceback" not in message and Path(name).parts[-1].split(".")[0] in message
            assert not (out / "manifest.json").exists()
