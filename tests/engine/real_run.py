"""A run with a real codec and the real text encoder, small enough for a test: three captions, clips of coarse noise."""

from pathlib import Path

import torch

from contentv.engine.config import RunConfig
from contentv.engine.data.encode import codec_psnr
from contentv.engine.data.manifest import Bucket
from contentv.engine.data.shard_writer import Sample, ShardWriter
from contentv.engine.signals import StopSignals
from contentv.engine.trainer import train
from contentv.model.codecs.pca_fit import fit
from contentv.model.text import load_text
from tests.engine.small_run import small_config

CAPTIONS = ("blue sparks over a lake", "green leaves", "red waves")
SIZE = Bucket(5, 32, 48)
STEPS = 6


def windows() -> dict[str, list[torch.Tensor]]:
    """Caption -> pixels_3FYX of five windows: four to train on, one held out."""
    made = {}
    for number, caption in enumerate(CAPTIONS):
        coarse = torch.rand(1, 3, 8, 4, 6, generator=torch.Generator().manual_seed(number)) * 2 - 1
        clip_3FYX = torch.nn.functional.interpolate(coarse, (21, *SIZE[1:]), mode="trilinear")[0]
        made[caption] = [clip_3FYX[:, first : first + SIZE.frames] for first in range(0, 17, 4)]
    return made


def write_real_shards(folder: Path) -> Path:
    clips, text, writer = windows(), load_text("minilm"), ShardWriter(folder)
    codec = fit(lambda: (window for group in clips.values() for window in group[:4]))
    tokens_BTW, pooled_BW = text.encode(list(clips))
    for row, (caption, group) in enumerate(clips.items()):
        for number, window in enumerate(group):
            facts = {"caption": caption, "clip": caption, "codec_psnr_db": codec_psnr(codec, window)}
            sample = Sample(
                sample=5 * row + number,
                latents_CFYX=codec.encode(window[None])[0],
                tokens_TW=tokens_BTW[row],
                pooled_W=pooled_BW[row],
                facts=facts,
            )
            writer.add("train" if number < 4 else "held_out", SIZE, sample)
    writer.close(codec, text)
    return folder


def real_config(folder: Path, shards: Path) -> RunConfig:
    return small_config(
        folder,
        shards,
        model={"text_width": 384, "pooled_width": 384},
        optimizer={"learning_rate": 1e-2, "ema_decay": 0.5},
        trainer={"max_steps": STEPS, "checkpoint_every": 3, "micro_batch": 4},
        sample={"steps": 3, "guidance": 2.0, "fps": 8.0},
    )


def make_real_run(folder: Path) -> Path:
    """FOLDER/run, trained to its end, on FOLDER/shards; checkpoints of steps 3 and 6."""
    assert train(real_config(folder / "run", write_real_shards(folder / "shards")), StopSignals()).complete
    return folder / "run"
