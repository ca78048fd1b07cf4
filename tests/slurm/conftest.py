"""One cluster, one set of shards and one undisturbed run for all drills."""

import os

import pytest

from tests.slurm.cluster import cluster
from tests.slurm.drill import Drill


@pytest.fixture(scope="session", autouse=True)
def slurm(tmp_path_factory):
    """A cluster of four virtual nodes, up while the drills run."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of every job: sbatch hands the environment on
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


@pytest.fixture
def calm(tmp_path, shards):
    """A function: that many steps of the run that nobody disturbs."""
    made = Drill(folder=tmp_path / "calm", shards=shards)
    yield made.undisturbed
    made.end()
