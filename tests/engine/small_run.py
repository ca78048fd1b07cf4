"""A run small enough for a test: random latents in real shards, a two-block model, a few steps."""

from dataclasses import replace
from pathlib import Path

import torch

from contentv.engine.config import RunConfig
from contentv.engine.data.manifest import Bucket
from contentv.engine.data.shard_writer import Sample, ShardWriter
from contentv.launchers.recipes import quickstart
from contentv.model.codecs.codec import identity_of, save_tensors
from contentv.model.config import ModelConfig

WIDTH = 24
"""Of the stand-in text features."""
BUCKET = Bucket(5, 32, 48)
MODEL = ModelConfig(
    layers=2, heads=2, head_width=16, text_width=WIDTH, pooled_width=WIDTH, initialisation="normal", position="rope3d"
)


class RandomText:
    """A text encoder by the protocol, its features random but fixed: training never looks behind them."""

    kind, identity, tokens, width, pooled_width = "random", "0" * 64, 5, WIDTH, WIDTH

    def encode(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(len(each))) for each in captions]
        return torch.stack([row[:5] for row in rows]), torch.stack([row[5] for row in rows])


class NoCodec:
    """What a shard folder and a checkpoint keep of a codec; training never decodes."""

    kind, channels, tensors = "none", 16, {"nothing": torch.zeros(1)}
    identity = identity_of(kind, tensors)

    def save(self, folder: Path) -> None:
        save_tensors(folder, self.kind, self.tensors)


def write_shards(folder: Path, samples: int = 14, held_out: int = 3) -> Path:
    """`samples` training and `held_out` held-out windows of one bucket."""
    generator = torch.Generator().manual_seed(7)
    text, writer = RandomText(), ShardWriter(folder, samples_per_shard=8)
    for index in range(samples + held_out):
        caption = f"caption {'x' * (index % 4)}"
        tokens_BTW, pooled_BW = text.encode([caption])
        latents = torch.randn(16, 2, 4, 6, generator=generator)
        facts = {"caption": caption, "clip": "none", "first_frame": 0, "codec_psnr_db": 30.0}
        sample = Sample(sample=index, latents_CFYX=latents, tokens_TW=tokens_BTW[0], pooled_W=pooled_BW[0], facts=facts)
        writer.add("train" if index < samples else "held_out", BUCKET, sample)
    writer.close(NoCodec(), text)
    return folder


def small_config(folder: Path, shards: Path, **sections: dict) -> RunConfig:
    """`small_config(folder, shards, trainer={"max_steps": 4})`: single values changed, as the command line does."""
    base = quickstart()
    values = {
        "run": {"folder": str(folder)},
        "data": {"folder": str(shards)},
        "optimizer": {"warmup_steps": 0, "schedule": "constant", "weight_decay": 0.01, "learning_rate": 1e-3},
        "trainer": {
            "max_steps": 4,
            "global_batch": 4,
            "micro_batch": 2,
            "checkpoint_every": 2,
            "validate_every": 0,
            "log_every": 3,
            "threads": 1,
        },
    }
    for name, changes in sections.items():
        values[name] = {**values.get(name, {}), **changes}
    parts = {name: replace(getattr(base, name), **changes) for name, changes in values.items() if name != "model"}
    return replace(base, **parts, model=replace(MODEL, **values.get("model", {})))
