"""The README's lines from own videos and weights to a fine-tuned sample, run as they stand, with small stand-ins.

Real classes throughout: diffusers' Wan VAE, Stable Diffusion 3's text encoders, the published transformer's layout.
Only sizes are added to the lines, so that a CPU is done in seconds.
"""

import csv
import os
import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from contentv.engine.checkpoints import CheckpointFolder
from contentv.engine.data.shards import ShardDataset
from contentv.engine.video import read_frames
from contentv.launchers import contentv
from tests.engine.data.videos import write_levels
from tests.model.stand_ins import write_sd3_text, write_transformer, write_wan_vae

README = Path(__file__).parents[1] / "README.md"
SMALLER = {
    "encode": "--frames 5 --size 32 48 --fps 5",
    "convert": "--trainer.max-steps 3 --trainer.global-batch 2 --optimizer.warmup-steps 0 --optimizer.ema-decay 0.5",
    "sample": "--steps 2",
}


def lines() -> list[str]:
    section = README.read_text().partition("## From your own videos")[2]
    return re.search(r"```\n(.*?)```", section, re.DOTALL)[1].splitlines()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What the lines begin with, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("CONTENTV_WAN", "CONTENTV_SD3"):
        monkeypatch.setenv(name, "")
    write_wan_vae(tmp_path / "weights/ContentV-8B/vae")
    write_sd3_text(tmp_path / "weights/ContentV-8B")
    write_transformer(tmp_path / "weights/ContentV-8B/transformer", text_width=40, pooled_width=32)
    for number in range(4):
        write_levels(tmp_path / f"videos/{number}.mp4", 12, size=(64, 96))
    with open("captions.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "caption"), *((f"{number}.mp4", f"wall {number}") for number in range(4))])
    return tmp_path


def test_the_ten_lines(folder, capfd):
    first, *commands = lines()
    assert len(commands) == 9
    os.environ |= dict(word.split("=") for word in shlex.split(first)[1:])
    for line in commands:
        program, command, *arguments = shlex.split(line)
        assert program == "contentv"
        # `convert export` takes no option; published weights need the size they are sampled at.
        smaller = "" if arguments[:1] == ["export"] else SMALLER.get(command, "")
        if arguments[:1] == ["weights/mine"]:
            smaller += " --size 5 32 48"
        assert contentv.main([command, *arguments, *smaller.split()]) == 0, capfd.readouterr().err
    printed = capfd.readouterr()
    assert "training can work here" in printed.out and "kind: published weights" in printed.out
    assert ShardDataset("data/mine").manifest.codec_kind == "wan" and Path("mine.png").stat().st_size
    assert CheckpointFolder("runs/mine").steps() == [0, 3]
    before = load_file("weights/ContentV-8B/transformer/diffusion_pytorch_model.safetensors")
    after = load_file("weights/mine/diffusion_pytorch_model.safetensors")
    assert before.keys() == after.keys() and all(before[name].shape == after[name].shape for name in before)
    moved = [name for name in before if not torch.equal(before[name].float(), after[name])]
    assert len(moved) > len(before) / 2
    for video in ("rabbit.mp4", "again.mp4"):
        assert len(list(read_frames(video))) == 5
