"""The profile that a server starts with, where the stored one cannot be read."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from clover import profiles, settings
from clover.config import ServerConfig, WorkersConfig
from clover.devices.cpu import CpuDevice
from clover.errors import ProfileError
from clover.profiling import stored
from clover.types import FamilyProfile, FamilySpec, TensorSpec, VariantSpec
from tests.support import profiles_fixture

TENSOR = TensorSpec(name="x", datatype="FP32", shape=(1,))
SPEC = FamilySpec(
    name="toy",
    inputs=(TENSOR,),
    outputs=(TENSOR,),
    variants=tuple(VariantSpec(name=name, loader="m:f") for name in profiles_fixture.VARIANTS),
    digest="d",
)


@pytest.mark.parametrize("damage", [b"", b'{"family": "toy", "key": "'])
def test_a_damaged_profile_is_put_aside_and_measured_again_unless_one_is_required(
    tmp_path: Path, damage: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = ServerConfig(cache_dir=str(tmp_path), profile="require", workers=WorkersConfig(backends=("eager",)))
    device = CpuDevice(settings.parse_cores(config.workers.cores))
    pool: Any = None
    key = stored.key_of(SPEC, device, config)
    measured = msgspec.structs.replace(profiles_fixture.profile(), key=key)
    store = profiles.ProfileStore(tmp_path)
    path = store.put(measured)
    path.write_bytes(damage)

    async def measure(*_: Any) -> FamilyProfile:
        return measured

    monkeypatch.setattr(stored, "measure", measure)
    with pytest.raises(ProfileError, match="is damaged"):
        asyncio.run(stored.ensure(SPEC, device, pool, config))
    assert path.read_bytes() == damage, "nothing is changed where a profile is required"
    config = msgspec.structs.replace(config, profile="auto")
    assert asyncio.run(stored.ensure(SPEC, device, pool, config)) == measured
    assert store.get("toy", key) == measured
    assert path.with_name(f"{path.name}.damaged").read_bytes() == damage
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"{path} is damaged" in line
    assert f"{path.name}.damaged" in line


def test_two_that_need_a_profile_at_once_measure_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ServerConfig(cache_dir=str(tmp_path), workers=WorkersConfig(backends=("eager",)))
    device = CpuDevice(settings.parse_cores(config.workers.cores))
    measured = msgspec.structs.replace(profiles_fixture.profile(), key=stored.key_of(SPEC, device, config))
    begun = 0

    async def measure(*_: Any) -> FamilyProfile:
        nonlocal begun
        begun += 1
        for _turn in range(3):
            await asyncio.sleep(0)
        return measured

    async def both(config: ServerConfig) -> list[FamilyProfile]:
        pool: Any = None
        return await asyncio.gather(*(stored.ensure(SPEC, device, pool, config) for _ in range(2)))

    monkeypatch.setattr(stored, "measure", measure)
    monkeypatch.setattr(stored, "_STEP_S", 0.0)
    assert asyncio.run(both(config)) == [measured, measured]
    assert begun == 1
    asyncio.run(both(msgspec.structs.replace(config, profile="force")))
    assert begun == 3
