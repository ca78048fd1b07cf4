"""A run goes on where it was: after a kill at any moment bit for bit, with other ranks to rounding."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from contentv.engine import config_yaml
from contentv.engine.checkpoints import CheckpointFolder, read_facts
from contentv.engine.exchange import export_run
from contentv.engine.metrics import METRICS_FILE, read_metrics
from contentv.launchers import evaluate, sample
from contentv.model import published
from contentv.model.cost import parameter_shapes
from contentv.model.weights import published_tensors
from contentv.parallel.layers import WHOLE
from contentv.tests.parallel.layouts import join
from contentv.tests.ranks import RankFailure
from tests.engine.test_trainer import same_tensors

PROGRAMS = "contentv.tests.engine.life_programs"
LIVE = f"{PROGRAMS}:live"
CLOSE = 1e-5
EVERY, STEPS = 2, 16
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
    # moment, the how manieth of that life, who dies; checkpoints that life completes
    ("removing", 1, 0, 3),
    ("half a file", 2, 1, 1),
    ("before the name", 1, 0, 0),
    ("step", 4, 1, 1),
    ("copying", 2, None, 1),
    ("after the name", 1, 0, 1),
]


@pytest.mark.parametrize("is_asynchronous", [False, True])
def test_kills_in_the_middle_of_anything_change_nothing(rank_server, shards, undisturbed, tmp_path, is_asynchronous):
    wanted = {"folder": str(tmp_path), "shards": str(shards)}
    wanted["trainer"] = TRAINER | {"async_checkpoint": is_asynchronous}
    checkpoints, step = CheckpointFolder(tmp_path), 0
    for moment, number, victim, complete in LIVES:
        with pytest.raises(RankFailure, match="ended with status"):
            rank_server.run(2, LIVE, moment=moment, number=number, victim=victim, **wanted)
        expected = {step + EVERY * complete}
        if is_asynchronous and moment == "step":
            expected.add(step)  # it may have been on its way
        step = read_facts(checkpoints.latest()).step
        assert step in expected, moment
        for each in checkpoints.steps():
            read_facts(checkpoints.path(each))
    rank_server.run(2, LIVE, **wanted)
    assert recorded(tmp_path) == recorded(undisturbed)
    assert same_tensors(*(CheckpointFolder(folder).path(STEPS) for folder in (tmp_path, undisturbed)))
    assert not list((tmp_path / "checkpoints").glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("is_asynchronous", [False, True])
def test_kills_at_any_time_change_nothing(rank_server, shards, undisturbed, tmp_path, is_asynchronous):
    wanted = {"folder": str(tmp_path), "shards": str(shards)}
    wanted["trainer"] = TRAINER | {"async_checkpoint": is_asynchronous}
    checkpoints, kills = CheckpointFolder(tmp_path), 0
    # From the first step on, later with every life, so that some kill falls into every part of a step and a save.
    for life in range(60):
        try:
            rank_server.run(2, LIVE, moment="time", number=40 + 23 * life, victim=life % 2, **wanted)
            break
        except RankFailure:
            kills += 1
        for each in checkpoints.steps():
            read_facts(checkpoints.path(each))
    assert kills > 10
    assert recorded(tmp_path) == recorded(undisturbed)
    assert same_tensors(*(CheckpointFolder(folder).path(STEPS) for folder in (tmp_path, undisturbed)))


def test_other_data_parallel_sizes_see_each_sample_once(rank_server, shards, tmp_path):
    def train(folder, world: int, last: int) -> list[list[int]]:
        """Ids of every step's global batch, as the ranks read them."""
        answers = rank_server.run(
            world, LIVE, folder=str(folder), shards=str(shards), trainer=TRAINER | {"max_steps": last}
        )
        assert all(answer["step"] == last for answer in answers)
        each = 4 // world
        return [
            [sample for answer in answers for read in answer["read"][first : first + each] for sample in read]
            for first in range(0, len(answers[0]["read"]), each)
        ]

    whole = train(tmp_path / "whole", 1, 7)
    parts = [*train(tmp_path / "parts", 1, 3), *train(tmp_path / "parts", 4, 5), *train(tmp_path / "parts", 2, 7)]
    assert parts == whole and len(whole) == 7
    ids = [sample for batch in parts for sample in batch]
    # 14 samples, seven batches of four: two epochs.
    assert sorted(ids[:14]) == sorted(ids[14:]) == list(range(14))
    for found, expected in zip(recorded(tmp_path / "parts"), recorded(tmp_path / "whole"), strict=True):
        assert found == pytest.approx(expected, rel=CLOSE)


def test_a_run_cut_by_heads_and_stages_exports_what_its_ranks_hold(rank_server, shards, tmp_path):
    # Three heads over two tensor ranks: two and one, beside a head of zeros.
    wanted = {"parallel": {"tensor": 2, "pipeline": 2}, "model": {"heads": 3}, "optimizer": {"ema_decay": 0.5}}
    rank_server.run(
        4, f"{PROGRAMS}:hold", folder=str(tmp_path / "run"), shards=str(shards), results=str(tmp_path), **wanted
    )
    held = [torch.load(tmp_path / f"{rank}.pt") for rank in range(4)]
    for kind in ("ema", "raw"):
        config = export_run(tmp_path / "run", tmp_path / kind, kind)
        expected = dict(published_tensors(config, join([rank[kind] for rank in held])[0].__getitem__))
        exported = published.open_folder(tmp_path / kind)
        assert config.heads == exported.config.heads == 3 and expected.keys() == parameter_shapes(config).keys()
        for name, tensor in expected.items():
            assert torch.equal(exported.tensor(name, WHOLE), tensor), (kind, name)


@pytest.fixture(scope="module")
def goes_on(rank_server, real_run, tmp_path_factory):
    """`contentv train RUN/config.yaml` by other ranks than those that began it; a folder for each."""
    folder = tmp_path_factory.mktemp("command")

    def train(name: str, world: int, *options: str) -> Path:
        run = folder / name
        shutil.copytree(real_run, run)
        argv = [str(run / "config.yaml"), "--run.folder", str(run), "--trainer.max-steps", "8", *options]
        answers = rank_server.run(world, f"{PROGRAMS}:run_command", argv=argv)
        assert answers == [{"status": 0}] * world
        return run

    return {
        "alone": train("alone", 1),
        "tensor": train("tensor", 2, "--parallel.tensor", "2", "--parallel.sequence", "True"),
        "both": train("both", 4, "--parallel.tensor", "2", "--parallel.pipeline", "2"),
    }


def test_the_command_goes_on_in_another_layout(goes_on):
    expected = recorded(goes_on["alone"])
    assert [line[0] for line in expected] == list(range(1, 9))
    for name, degrees in (("tensor", (2, 1)), ("both", (2, 2))):
        assert recorded(goes_on[name]) == [pytest.approx(line, rel=CLOSE) for line in expected]
        for folder in (goes_on[name], CheckpointFolder(goes_on[name]).path(8)):
            layout = config_yaml.load(folder / "config.yaml").parallel
            assert (layout.tensor, layout.pipeline) == degrees


def test_one_process_samples_and_judges_what_several_trained(goes_on, tmp_path, capfd):
    figures = {}
    for name, run in goes_on.items():
        video = tmp_path / f"{name}.mp4"
        assert sample.main([str(run), "--prompt", "red waves", "--out", str(video)]) == 0 and video.stat().st_size
        capfd.readouterr()
        assert evaluate.main([str(run), "--json"]) == 0
        figures[name] = json.loads(capfd.readouterr().out)
    for name, found in figures.items():
        for figure, value in figures["alone"].items():
            assert found[figure] == (value and pytest.approx(value, rel=1e-3)), (name, figure)
