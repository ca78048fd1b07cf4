"""What several folders of tests share."""

import os
from pathlib import Path

import pytest

from contentv.tests.ranks import RankServer

if not any(Path("/dev").glob("nvidia[0-9]*")):
    # Without a GPU the Triton kernels are interpreted. Triton reads this once, when anything first imports it, and
    # other people's libraries do that long before the kernels' tests are reached.
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def rank_server(tmp_path_factory):
    """Starts worlds of ranks; the process that forks them starts once, and only if a test asks for it."""
    with RankServer(tmp_path_factory.mktemp("ranks")) as server:
        yield server


@pytest.fixture(scope="session")
def real_run(tmp_path_factory):
    """The folder of a small finished run with a real codec and text encoder. Copy it before changing anything in it."""
    # Imported by the first test that asks: collecting the others needs neither torch nor megatron.
    from tests.engine.real_run import make_real_run

    return make_real_run(tmp_path_factory.mktemp("real"))
