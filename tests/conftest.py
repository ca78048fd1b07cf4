"""What several folders of tests share."""

import pytest

from contentv.tests.ranks import RankServer


@pytest.fixture(scope="session")
def rank_server(tmp_path_factory):
    """Starts worlds of ranks; the process that forks them starts once, and only if a test asks for it."""
    with RankServer(tmp_path_factory.mktemp("ranks")) as server:
        yield server
