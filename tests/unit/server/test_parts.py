"""How the parts of a server are made, and what is left if that fails."""

from __future__ import annotations

import asyncio
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clover import carbon
from clover.config import FamilyConfig, ServerConfig
from clover.errors import ConfigError
from clover.server.families import ServedFamilies
from clover.server.machine import Machine
from clover.server.parts import Parts, build
from tests.support.router_fixture import family


def config(folder: Path) -> ServerConfig:
    return ServerConfig(families=(FamilyConfig(family="toy"),), cache_dir=str(folder), state_dir=str(folder))


def made(folder: Path) -> Parts:
    async def main() -> Parts:
        pool: Any = SimpleNamespace(completions=SimpleNamespace(add=lambda reap: None))
        return build(config(folder), {"toy": family()}, pool)

    return asyncio.run(main())


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    for kind in (ServedFamilies, Machine):

        def close(self: Any, kind: Any = kind, close: Any = kind.close) -> None:
            found.append(kind.__name__)
            close(self)

        monkeypatch.setattr(kind, "close", close)
    return found


def test_parts_are_whole_and_not_exchanged(tmp_path: Path, closed: list[str]) -> None:
    parts = made(tmp_path)
    assert closed == []
    assert list(parts.families.served) == list(parts.families.models) == ["toy"]
    assert parts.rollouts.pick(None) is parts.families.served["toy"]
    assert parts.control.state()["totals"] == parts.totals.report()
    with pytest.raises(FrozenInstanceError):
        setattr(parts, fields(parts)[0].name, None)
    parts.close()
    assert closed == ["ServedFamilies", "Machine"]


def test_a_part_that_cannot_be_made_leaves_no_memory_and_no_device_behind(
    tmp_path: Path, closed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(config: Any) -> Any:
        raise ConfigError("no such source")

    monkeypatch.setattr(carbon, "build", fails)
    with pytest.raises(ConfigError, match="no such source"):
        made(tmp_path)
    assert closed == ["ServedFamilies", "Machine"]
