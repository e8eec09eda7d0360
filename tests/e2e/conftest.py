"""What whole servers share in the tests."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import clover
from clover.runtime.workers.zygote_link import ZygoteLink
from tests.e2e.forked_zygote import Nursery
from tests.support.toy_family import TOY, settings


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


@pytest.fixture(scope="session")
def toy_profiles(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the profile of `toy`, measured by the first start of a server with the settings of `toy_family`."""
    folder = tmp_path_factory.mktemp("toy")

    async def start() -> None:
        async with clover.Server(TOY, **settings(folder)):
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ZygoteLink, "launch", nursery.launch)
        asyncio.run(start())
    return folder / "profiles"


@pytest.fixture
def toy_cache(toy_profiles: Path, tmp_path: Path) -> Path:
    """A cache folder of the test's own with the profile of `toy`; for tests that are not about how one is measured."""
    shutil.copytree(toy_profiles, tmp_path / "profiles")
    return tmp_path
