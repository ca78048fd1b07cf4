"""A run goes on where it was: after a kill at any moment bit for bit, with other ranks to rounding, each sample once."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from contentv.engine import config_yaml
from contentv.engine.checkpoints import CheckpointFolder, read_facts
from contentv.engine.exchange import export_run
from contentv.engine.metrics import METRICS_FILE, read_metrics
from contentv.launchers import evaluate, sample
from contentv.model import published
from contentv.model.weights import published_tensors
from contentv.parallel.layers import WHOLE
from contentv.tests.parallel.layouts import join
from contentv.tests.ranks import RankFailure
from tests.engine.real_run import real_config
from tests.engine.test_trainer import same_tensors

PROGRAMS = "contentv.tests.engine.life_programs"
LIVE = f"{PROGRAMS}:live"
CLOSE = 1e-5
EVERY, STEPS = 2, 12
TRAINER = {"max_steps": STEPS, "checkpoint_every": EVERY, "micro_batch": 1, "log_every": 1}


def recorded(folder) -> list[tuple]:
    lines = read_metrics(Path(folder) / METRICS_FILE)
    return [(line["step"], line["loss"], line["grad_norm"], line["lr"]) for line in lines]


@pytest.fixture(scope="module")
def undisturbed(rank_server, shards, tmp_path_factory):
    """Two ranks to the end, nobody killed, every save waited for."""
    folder = tmp_path_factory.mktemp("undisturbed")
    rank_server.run(2, LIVE, folder=str(folder), shards=str(shards), trainer=TRAINER | {"async_checkpoint": False})
    return folder


LIVES = [
    # moment, which save of that life, who dies; the last complete checkpoint then
    ("half a file", 2, 1, 2),
    ("before the name", 2, 0, 4),
    ("copying", 2, None, 6),
    ("step", 4, 1, 8),
    ("after the name", 1, 0, 10),
]


@pytest.mark.parametrize("is_asynchronous", [False, True])
def test_kills_in_the_middle_of_anything_change_nothing(rank_server, shards, undisturbed, tmp_path, is_asynchronous):
    wanted = {"folder": str(tmp_path), "shards": str(shards)}
    wanted["trainer"] = TRAINER | {"async_checkpoint": is_asynchronous}
    for moment, save, victim, complete in LIVES:
        with pytest.raises(RankFailure, match="ended with status"):
            rank_server.run(2, LIVE, moment=moment, save=save, victim=victim, **wanted)
        latest = CheckpointFolder(tmp_path).latest()
        assert read_facts(latest).step == complete, moment
    rank_server.run(2, LIVE, **wanted)
    assert recorded(tmp_path) == recorded(undisturbed)
    assert same_tensors(*(CheckpointFolder(folder).path(STEPS) for folder in (tmp_path, undisturbed)))
    assert not list((tmp_path / "checkpoints").glob(".*"))
