from pathlib import Path

import pytest

from tests.engine.small_run import write_shards


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))
