"""What whole servers share in the tests."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import clover
from clover.backends import child_environment
from clover.runtime.workers.zygote_link import ZygoteLink
from tests.e2e.forked_zygote import Nursery, imported
from tests.support.forks import Forks
from tests.support.servers import SHORT
from tests.support.toy_family import TOY, settings


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """One process that has imported torch, for all servers of the run that take their zygotes from it."""
    found = Nursery(imported())
    yield found
    found.close()


@pytest.fixture(scope="session")
def scenes(nursery: Nursery) -> Iterator[Forks]:
    """A process that has imported torch and the server, for programs that are servers of their own: since NVML is one
    library a process, or since they are killed.  (`mig_runs` runs them.)"""
    found = Forks("clover.server", environ={**os.environ, **child_environment()}, within=nursery.forks)
    yield found
    found.close()


@pytest.fixture
def forked_zygotes(nursery: Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers of this process get forked zygotes; for tests that are not about how one starts or what it leaves."""
    monkeypatch.setattr(ZygoteLink, "launch", nursery.launch)


@pytest.fixture
def short_profiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers of this process measure less at their first start."""
    monkeypatch.setattr("clover.profiling.stored.QUICK", SHORT)


@pytest.fixture(scope="session")
def toy_profiles(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the profile of `toy`, measured by the first start of a server with the settings of `toy_family`:
    once for all processes of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "toy"
    folder.mkdir(exist_ok=True)

    async def start() -> None:
        async with clover.Server(TOY, **settings(folder)):
            pass

    with (folder / "lock").open("w") as lock, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "measured").exists():
            patch.setattr(ZygoteLink, "launch", nursery.launch)
            patch.setattr("clover.profiling.stored.QUICK", SHORT)
            asyncio.run(start())
            (folder / "measured").touch()
    return folder / "profiles"


@pytest.fixture
def toy_cache(toy_profiles: Path, tmp_path: Path) -> Path:
    """A cache folder of the test's own with the profile of `toy`; for tests that are not about how one is measured."""
    unfinished = shutil.ignore_patterns(".*")  # another test's server may be writing one
    shutil.copytree(toy_profiles, tmp_path / "profiles", ignore=unfinished)
    return tmp_path
