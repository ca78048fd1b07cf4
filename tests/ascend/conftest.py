from pathlib import Path

import pytest

from contentv.tests.ranks import RankServer
from tests.ascend import simulation
from tests.engine.small_run import write_shards


@pytest.fixture(scope="session")
def npu_environment(tmp_path_factory) -> dict[str, str]:
    """For a process that shall see two simulated NPUs."""
    return simulation.environment(tmp_path_factory.mktemp("npu"), devices=2)


@pytest.fixture(scope="session")
def npu_server(npu_environment, tmp_path_factory):
    """Starts worlds of ranks on the simulated NPUs."""
    with RankServer(tmp_path_factory.mktemp("npu-ranks"), **npu_environment) as server:
        yield server


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))
