"""`clover profile` and the operator's commands around changes of instances."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from clover.cli import profile
from clover.config import MigConfig, ServerConfig
from clover.devices.mig import MigDevice
from clover.devices.nvml import Nvml
from clover.types import Placement
from tests.support.fake_nvml import Board, FakeNvml


class NoPool:
    """A pool without workers."""

    def __init__(self, **_: object) -> None: ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


def test_instances_are_made_between_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = tmp_path / "said"

    async def measure(spec: Any, gpus: dict[str, MigDevice], *_: object) -> str:
        await gpus["gpu0"].create(Placement(device="gpu0", profile="1g.5gb", start=2, size=1))
        return said.read_text()

    monkeypatch.setattr(profile, "Pool", NoPool)
    monkeypatch.setattr(profile, "measure", measure)
    write = ["/bin/sh", "-c", f"echo $0 >>{said}"]
    config = ServerConfig(mig=MigConfig(before_change=(*write, "before"), after_change=(*write, "after")))
    session = Nvml(FakeNvml(Board("GPU-a")))
    gpu = MigDevice.open(session, 0, tmp_path / "mig", cores=())
    try:
        found = asyncio.run(profile._measure(cast("Any", None), {"gpu0": gpu}, config, cast("Any", None)))
    finally:
        gpu.close()
        session.close()
    assert (found, said.read_text()) == ("before\n", "before\nafter\n")
