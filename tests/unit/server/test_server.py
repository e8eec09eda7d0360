"""What an embedded server says when it is ready."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

import clover
from clover.families import load_family
from clover.server import server

FAMILIES = Path(__file__).parents[2] / "families"


def test_a_server_that_shows_no_banner_logs_which_variants_are_untrained(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    toy = load_family(str(FAMILIES / "toy"))
    untrained = msgspec.structs.replace(toy.variants[0], untrained=True)
    random = msgspec.structs.replace(toy, name="random", variants=(untrained,))

    class Ready:
        def __init__(self, *_: Any, **__: Any) -> None:
            self.served = {spec.name: SimpleNamespace(spec=spec) for spec in (toy, random)}

        async def start(self) -> None:
            return

    monkeypatch.setattr(server, "Engine", Ready)
    monkeypatch.setattr(clover.Server, "_launch", lambda self: None)
    asyncio.run(clover.Server(toy).start())
    (line,) = caplog.messages
    assert line.startswith(f"{toy.variants[0].name} of random: UNTRAINED")
    caplog.clear()
    asyncio.run(clover.Server(toy)._start(shown=True))
    assert caplog.messages == []
