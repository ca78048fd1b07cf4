"""One cluster, one set of shards and one undisturbed run for all drills."""

import os

import pytest

from tests.slurm.cluster import cluster
from tests.slurm.drill import Drill, undisturbed


@pytest.fixture(scope="session", autouse=True)
def slurm(tmp_path_factory):
    """A cluster of four virtual nodes, up while the drills run."""
    with cluster(tmp_path_factory.mktemp("slurm")) as base:
        yield base


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    from tests.engine.small_run import write_shards

    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def drill(tmp_path, shards) -> Drill:
    made = Drill(folder=tmp_path / "run", shards=shards)
    yield made
    made.end()


@pytest.fixture(scope="session")
def calm(tmp_path_factory, shards):
    """The metrics of the run that nobody disturbs."""
    os.environ["OMP_NUM_THREADS"] = "1"
    return undisturbed(tmp_path_factory.mktemp("calm") / "run", shards)
