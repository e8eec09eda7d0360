"""What whole servers share in the tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from clover.runtime.workers.zygote_link import ZygoteLink
from tests.e2e.forked_zygote import Nursery


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """One process that has imported torch, for all servers of the run that take their zygotes from it."""
    found = Nursery()
    yield found
    found.close()


@pytest.fixture
def forked_zygotes(nursery: Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers of this process get forked zygotes; for tests that are not about how one starts or what it leaves."""
    monkeypatch.setattr(ZygoteLink, "launch", nursery.launch)
