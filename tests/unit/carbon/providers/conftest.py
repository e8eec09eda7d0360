"""One server for the tests of a module, which answers as every provider does at `NOW_S`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.carbon_server import NOW_S, CarbonServer


@pytest.fixture(scope="module")
def replay() -> Iterator[CarbonServer]:
    with CarbonServer(lambda: NOW_S) as server:
        yield server


@pytest.fixture
def server(replay: CarbonServer) -> Iterator[CarbonServer]:
    yield replay
    replay.requests.clear()
    replay.fault = None
    replay.change = lambda document: document
