import shutil
from pathlib import Path

import pytest
import torch

from contentv.engine.data.manifest import Bucket
from contentv.engine.data.shard_writer import Sample, ShardWriter
from contentv.tests.ranks import RankServer
from tests.ascend import simulation
from tests.engine.small_run import NoCodec, write_shards


@pytest.fixture(scope="session")
def npu_environment(tmp_path_factory) -> dict[str, str]:
    """For a process that shall see two simulated NPUs."""
    if shutil.which(simulation.COMPILER) is None:
        pytest.skip(f"no C++ compiler ({simulation.COMPILER}) is here to build the simulated NPU with")
    return simulation.environment(tmp_path_factory.mktemp("npu"), devices=2)


@pytest.fixture(scope="session")
def npu_server(npu_environment, tmp_path_factory):
    """Starts worlds of ranks on the simulated NPUs."""
    with RankServer(tmp_path_factory.mktemp("npu-ranks"), **npu_environment) as server:
        yield server


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


class WideText:
    """Captions of the quickstart's text encoder's size, their features random but fixed."""

    kind, identity, tokens, width, pooled_width = "wide", "1" * 64, 16, 384, 384

    def encode(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [torch.randn(17, 384, generator=torch.Generator().manual_seed(len(each))) for each in captions]
        return torch.stack([row[:16] for row in rows]), torch.stack([row[16] for row in rows])


@pytest.fixture(scope="session")
def quickstart_shards(tmp_path_factory) -> Path:
    """Random latents of the quickstart's own sizes."""
    generator, text = torch.Generator().manual_seed(7), WideText()
    writer = ShardWriter(folder := tmp_path_factory.mktemp("quickstart"), samples_per_shard=8)
    for index in range(18):
        tokens_BTW, pooled_BW = text.encode(["x" * (index % 4)])
        latents = torch.randn(16, 5, 8, 12, generator=generator)
        facts = {"caption": "x", "clip": "none", "first_frame": 0, "codec_psnr_db": 30.0}
        sample = Sample(sample=index, latents_CFYX=latents, tokens_TW=tokens_BTW[0], pooled_W=pooled_BW[0], facts=facts)
        writer.add("train" if index < 16 else "held_out", Bucket(17, 64, 96), sample)
    writer.close(NoCodec(), text)
    return folder
