"""Families that are served before they were measured."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import clover
from clover import profiling
from clover.config import ListenConfig, ServerConfig, TokenConfig
from clover.control.wording import troubles
from clover.errors import ProfileError
from clover.families import load_family
from clover.profiling.beside import order_of
from clover.serve import banner
from clover.types import FamilySpec
from tests.support.servers import children, run, until
from tests.support.toy_family import TOY, expected, settings

ROWS = np.array([[1.0, 0.0, 0.0, 2.0]], np.float32)


def auto(folder: Path, **more: Any) -> dict[str, Any]:
    return {**settings(folder), "profile": "auto", **more}


def model(server: clover.Server) -> dict[str, Any]:
    found: dict[str, Any] = server.engine.control().state()["totals"]["models"]["toy"]
    return found


async def planned(server: clover.Server, most_s: float = 120.0) -> None:
    end_s = time.monotonic() + most_s
    while model(server)["profile"] == "none" or server.engine.parts.families.unplanned:
        assert time.monotonic() < end_s, model(server)
        await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def asked_all_the_time(server: clover.Server) -> AsyncIterator[list[Any]]:
    """Ask for rows, some with an accuracy, one after another while the body runs; yield the answers."""
    answers: list[Any] = []
    ended = asyncio.Event()

    async def ask() -> None:
        while not ended.is_set():
            answers.append(await server.ainfer({"INPUT0": ROWS}, min_accuracy=(50.0 if len(answers) % 2 else None)))

    tasks = [asyncio.create_task(ask()) for _ in range(3)]
    try:
        yield answers
    finally:
        ended.set()
        await asyncio.gather(*tasks)


def measured_later(monkeypatch: pytest.MonkeyPatch, profiles: Path, folder: Path) -> Callable[[], None]:
    """Have the measurement of `toy` end when the function that this returns is called: its profile is there then."""
    begun = asyncio.Event()

    async def measure(spec: FamilySpec, config: ServerConfig, environment: dict[str, str]) -> None:
        await begun.wait()
        shutil.copytree(profiles, folder / "profiles", ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True)

    monkeypatch.setattr("clover.server.measuring.measure_beside", measure)
    return begun.set


@pytest.mark.usefixtures("forked_zygotes")
def test_a_family_is_served_by_its_best_variant_until_it_is_planned(
    toy_profiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = measured_later(monkeypatch, toy_profiles, tmp_path)

    async def main() -> None:
        async with clover.Server(TOY, **auto(tmp_path)) as server:
            assert (model(server)["profile"], model(server)["unmeasured"]) == ("none", "is being measured")
            async with asked_all_the_time(server) as answers:
                while len(answers) < 50:
                    await asyncio.sleep(0.01)
                assert {answer.receipt.variant for answer in answers} == {"full"}
                assert model(server)["accuracy_served"] is None
                with pytest.raises(clover.BadRequest, match="in percent"):
                    await server.ainfer({"INPUT0": ROWS}, min_accuracy=0.5)
                with pytest.raises(clover.CloverError, match="being measured"):
                    await server.engine.control().command("roll-out", {"model": "toy", "folder": TOY}, "me")
                control = server.engine.control()
                for verb, words in (("plan", {}), ("plan", {"model": "toy"}), ("set", {"slo_ms": 20.0})):
                    with pytest.raises(clover.CloverError, match="toy: served without a plan, as there is no profile"):
                        await control.command(verb, words, "me")
                measured()
                await planned(server)
                assert model(server)["accuracy_served"] > 75.0, "those before the profile count by it, too"
                count = len(answers)
                while len(answers) < count + 50:
                    await asyncio.sleep(0.01)
            for answer in answers:
                assert answer["OUTPUT0"] == pytest.approx(expected(answer.variants[0], ROWS), abs=1e-5)
            assert ("half>full",) in {answer.receipt.path for answer in answers[count:]}, "it is planned as a cascade"
            with pytest.raises(clover.BadRequest, match="reaches an accuracy of 100"):
                await server.ainfer({"INPUT0": ROWS}, min_accuracy=100.0)
            found = model(server)
            assert (found["profile"], found["unmeasured"]) == ("measured", "")
            assert found["requests"].get("200", 0) >= len(answers)
            assert {code for code in found["requests"] if code not in ("200", "400")} == set()
            assert [line["variant"] for line in found["workers"]].count("full") == 1, "those before the plan are gone"

    before = children()
    run(main())
    assert children() == before


@pytest.mark.usefixtures("forked_zygotes")
def test_nothing_is_refused_by_a_prediction_before_there_is_a_profile(
    toy_profiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured_later(monkeypatch, toy_profiles, tmp_path)

    async def main() -> None:
        async with clover.Server(TOY, **auto(tmp_path, slo_ms=0.001)) as server:  # that no machine meets
            answers = await asyncio.gather(*(server.ainfer({"INPUT0": ROWS}) for _ in range(100)))
            assert {answer.receipt.variant for answer in answers} == {"full"}

    run(main())


def test_workers_that_the_first_plan_keeps_are_replaced(
    toy_profiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = measured_later(monkeypatch, toy_profiles, tmp_path)

    def workers(server: clover.Server) -> set[int]:
        return {line["pid"] for line in model(server)["workers"] if line["state"] == "ready"}

    async def main() -> None:
        async with clover.Server(TOY, **auto(tmp_path, policy="base")) as server:
            before = workers(server)
            async with asked_all_the_time(server) as answers:
                measured()
                await planned(server)
                await until(lambda: (now := workers(server)) and not now & before)
            assert {answer.receipt.variant for answer in answers} == {"full"}
            assert model(server)["restarts"] == 0

    run(main())


@pytest.mark.usefixtures("forked_zygotes")
def test_a_family_that_cannot_be_measured_stays_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def measure(spec: FamilySpec, config: ServerConfig, environment: dict[str, str]) -> None:
        raise ProfileError("its rows have no labels")

    monkeypatch.setattr("clover.server.measuring.measure_beside", measure)

    async def main() -> None:
        async with clover.Server(TOY, **auto(tmp_path)) as server:
            while "cannot" not in model(server)["unmeasured"]:
                await asyncio.sleep(0.01)
            assert model(server)["unmeasured"] == "cannot be planned: its rows have no labels"
            answer = await server.ainfer({"INPUT0": ROWS}, min_accuracy=50.0)
            assert answer.receipt.variant == "full"
            said = "toy cannot be planned: its rows have no labels; its best variant answers"
            assert said in list(troubles(server.engine.control().state()))

    run(main())
    assert "it stays served by its best variant" in caplog.text


@pytest.mark.usefixtures("forked_zygotes")
def test_a_floor_that_no_variant_reaches_is_said_once_it_is_known(
    toy_profiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured_later(monkeypatch, toy_profiles, tmp_path)()

    async def main() -> None:
        async with clover.Server(TOY, **auto(tmp_path, accuracy_floor=100.0)) as server:
            while "cannot" not in model(server)["unmeasured"]:
                await asyncio.sleep(0.01)
            assert "accuracy_floor 100 is above the best variant's" in model(server)["unmeasured"]
            assert (await server.ainfer({"INPUT0": ROWS})).receipt.variant == "full"

    run(main())


@pytest.mark.usefixtures("forked_zygotes")
def test_a_family_that_was_unloaded_meanwhile_is_planned_when_it_is_loaded(
    toy_profiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = measured_later(monkeypatch, toy_profiles, tmp_path)

    async def main() -> None:
        async with clover.Server(TOY, **auto(tmp_path)) as server:
            served, loading = server.engine.served["toy"], server.engine.parts.loading
            await loading.unload(served)
            measured()
            while served.profile is None:
                await asyncio.sleep(0.01)
            await loading.load(served, "")
            await planned(server)
            assert (await server.ainfer({"INPUT0": ROWS})).receipt.variant in ("half", "full")

    run(main())


def test_the_order_has_no_secret() -> None:
    config = ServerConfig(listen=ListenConfig(token="hidden"), tokens=(TokenConfig(name="ops", token="hidden"),))
    assert b"hidden" not in order_of(load_family(TOY), config)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_process_measures_while_the_family_is_asked(tmp_path: Path) -> None:
    async def main() -> None:
        async with clover.Server(TOY, **auto(tmp_path)) as server:
            text = banner.text(server)
            assert "toy: half, full\n" in text
            assert "is being measured while it serves. Until it is planned full answers, and no target is set" in text
            async with asked_all_the_time(server) as answers:
                await planned(server, 240.0)
            assert len(answers) > 100
            kept = msgspec.structs.replace(server.config, profile="require")
            found = await profiling.ensure(
                server.engine.served["toy"].spec, server.engine.devices, server.engine.parts.pool, kept
            )
            assert found.backend == {"half": "eager", "full": "eager"}

    before = children()
    run(main())
    assert children() == before


def test_a_server_that_stops_leaves_no_measurement_behind(tmp_path: Path) -> None:
    async def main() -> None:
        async with clover.Server(TOY, **auto(tmp_path)):
            await asyncio.sleep(0.3)  # the process is there, or about to be
            began = time.monotonic()
        assert time.monotonic() - began < 5.0

    before = children()
    run(main())
    assert children() == before
    assert not list(tmp_path.glob("profiles/*.json"))
