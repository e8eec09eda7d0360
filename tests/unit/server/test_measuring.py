"""Families that are measured while they are served: what is begun again, and what is not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from clover.config import FamilyConfig, ServerConfig
from clover.devices.cpu import CpuDevice
from clover.errors import ConfigError, ProfileError, StartError, WorkerError
from clover.families import load_family
from clover.profiling import beside
from clover.profiling.measurement import INFLATED
from clover.server import measuring
from clover.server.measuring import Measuring
from clover.types import FamilyProfile
from tests.support.profiles_fixture import profile
from tests.support.toy_family import TOY

KILLED = WorkerError("the process that measured it ended (killed by SIGKILL)")
NOISY = msgspec.structs.replace(profile(), notes=(f"others used 60% of the cores meanwhile: {INFLATED}",))


class Scene:
    """A family that is served; each measurement ends as the next of `outcomes` says.  `waits`: seconds between them."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        *outcomes: Exception | None,
        measured: FamilyProfile | None = None,
        busy: Iterable[float] = (),
        floor: float | None = None,
    ) -> None:
        self.waits: list[float] = []
        self.said: list[str] = []
        self.orders: list[str] = []
        self.planned = 0
        left, shares = list(outcomes), list(busy)

        async def measure(spec: Any, config: ServerConfig, environment: dict[str, str]) -> None:
            self.orders.append(config.profile)
            if (outcome := left.pop(0)) is not None:
                raise outcome

        async def ensure(*_: Any) -> FamilyProfile:
            return measured or profile()

        async def busy_share(cores: Any, *, watch_s: float) -> float:
            assert watch_s >= 60.0
            return shares.pop(0)

        async def plan(served: Any) -> None:
            self.planned += 1

        async def sleep(seconds: float) -> None:
            self.waits.append(seconds)
            self.said.append(self.served.unmeasured)

        monkeypatch.setattr(measuring, "measure_beside", measure)
        monkeypatch.setattr(measuring, "busy_share", busy_share)
        monkeypatch.setattr(measuring.profiling, "ensure", ensure)
        self.served: Any = SimpleNamespace(
            name="toy",
            spec=load_family(TOY),
            config=FamilyConfig(family="toy", accuracy_floor=floor),
            profile=None,
            unmeasured=measuring.BEING_MEASURED,
            drawn={},
            router=SimpleNamespace(recount=lambda: None),
            use=self._use,
        )
        families: Any = SimpleNamespace(pool=None, account=SimpleNamespace(add_family=lambda *_: None))
        loading: Any = SimpleNamespace(changing=asyncio.Lock(), plan=plan)
        devices = {"cpu0": CpuDevice((0,))}
        self.measuring = Measuring(ServerConfig(), families, devices, loading, None, sleep=sleep)

    def _use(self, found: FamilyProfile | None, drawn: Any = None) -> None:
        self.served.profile = found
        if found is not None:
            self.served.unmeasured = ""

    def run(self) -> str:
        """Measure; return what is said of the family in the end."""
        asyncio.run(self.measuring.run([self.served]))
        assert self.planned == (self.served.unmeasured == "")
        return str(self.served.unmeasured)


def test_a_measurement_that_was_killed_is_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, KILLED, StartError("toy: no first plan: a worker died"), None)
    assert scene.run() == ""
    assert scene.waits == [60.0, 300.0]
    assert scene.said == [
        "is measured again 60 s after that failed: the process that measured it ended (killed by SIGKILL)",
        "is measured again 5 min after that failed: no first plan: a worker died",
    ]


def test_a_measurement_that_is_always_killed_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, KILLED, KILLED, KILLED, KILLED)
    said = scene.run()
    assert scene.waits == [60.0, 300.0, 1800.0]
    assert said.startswith("cannot be planned: the process that measured it ended (killed by SIGKILL); `")
    assert said.endswith(f"profile {TOY}` measures it, and the next start plans with that")


@pytest.mark.parametrize(
    ("outcome", "floor", "why"),
    [
        (ProfileError("its rows have no labels"), None, "its rows have no labels"),
        (ConfigError("toy: it has no variant"), None, "it has no variant"),
        (None, 99.0, "accuracy_floor 99 is above the best variant's 92.00 %"),
    ],
)
def test_a_failure_that_would_come_again_is_said_at_once(
    outcome: Exception | None, floor: float | None, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(monkeypatch, outcome, floor=floor)
    assert scene.run() == f"cannot be planned: {why}"
    assert scene.waits == []


@pytest.mark.parametrize("outcome", [None, KILLED])
def test_a_profile_of_a_busy_machine_is_measured_once_more_when_it_is_calm(
    outcome: Exception | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    scene = Scene(monkeypatch, None, outcome, measured=NOISY, busy=[0.9, 0.3, 0.02])
    assert scene.run() == ""
    assert (scene.orders, scene.waits) == (["auto", "force"], [600.0, 600.0])
    assert ("toy is measured again: the next start plans" in caplog.text) == (outcome is None)
    assert ("toy keeps its profile of a busy machine" in caplog.text) == (outcome is not None)


@pytest.mark.parametrize(
    ("script", "kind", "words"),
    [
        ("echo its rows have no labels; exit 1", ProfileError, "its rows have no labels"),
        ("echo a worker died; exit 3", WorkerError, "a worker died"),
        ("exit 1", WorkerError, "the process that measured it ended (exit status 1)"),
        ("kill -9 $$", WorkerError, "the process that measured it ended (killed by SIGKILL)"),
    ],
)
def test_how_the_process_ended_says_whether_that_may_pass(
    script: str, kind: type[Exception], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nread order\n{script}\n")
    program.chmod(0o700)
    monkeypatch.setattr(beside.sys, "executable", str(program))
    with pytest.raises(kind) as raised:
        asyncio.run(beside.measure_beside(load_family(TOY), ServerConfig(), {}))
    assert str(raised.value) == words


def test_what_befell_a_worker_may_pass() -> None:
    def status(error: Exception, cause: Exception | None = None) -> int:
        error.__cause__ = cause
        return beside.status_of(error)

    assert status(WorkerError("killed")) == status(ProfileError("cannot be measured"), WorkerError("killed")) == 3
    assert status(ProfileError("its rows have no labels")) == status(ConfigError("no file"), OSError("no file")) == 1
