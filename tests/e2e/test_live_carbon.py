"""A whole server with a live provider that goes away under load and returns; one whose provider refuses the key."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

import clover
from clover import carbon
from clover.carbon.grid import boot_seconds
from clover.telemetry.ledger import LedgerReader
from tests.support.carbon_server import KEY, Answer, CarbonServer
from tests.support.forks import Forks
from tests.support.servers import descriptors, until
from tests.support.toy_family import TOY, settings

HOUR, DAY = 3600.0, 86_400.0
SERVE = "import sys\nfrom clover.serve import main\nsys.exit(main(sys.argv[1:]))"
DOWN = Answer(b'{"error":"closed for maintenance"}', 503)
BODY = {"inputs": [{"name": "INPUT0", "shape": [1, 4], "datatype": "FP32", "data": [1.0, 2.0, 3.0, 4.0]}]}


@pytest.mark.usefixtures("forked_zygotes")
def test_a_provider_that_goes_away_under_load_costs_no_request(
    toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = [0.0]  # seconds by which the server's grid clock, and the provider, are ahead of the time of day

    def wall() -> float:
        return time.time() + ahead[0]

    clocks = {"monotonic": lambda: boot_seconds() + ahead[0], "wall": wall}
    monkeypatch.setattr(carbon, "build", functools.partial(carbon.build, **clocks))

    async def load(session: aiohttp.ClientSession, url: str, statuses: list[int]) -> None:
        while True:
            async with session.post(f"{url}/v2/models/toy/infer", json=BODY) as answer:
                statuses.append(answer.status)
                await answer.read()
            await asyncio.sleep(0.005)

    async def main(replay: CarbonServer) -> None:
        own: dict[str, Any] = {"http": True, "port": 0, "carbon": "neso,static:300"}
        own["carbon_provider"] = [{"name": "neso", "url": replay.url}]
        own |= {"ledger": "on", "ledger_name": "drill", "state_dir": str(tmp_path)}
        async with (
            clover.Server(TOY, **settings(toy_cache) | own) as server,
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session,
        ):
            chain, statuses = server.engine.chain, list[int]()

            async def metrics(name: str) -> list[tuple[dict[str, str], float]]:
                async with session.get(f"{server.url}/metrics") as answer:
                    families = text_string_to_metric_families(await answer.text())
                return [(one.labels, one.value) for family in families for one in family.samples if one.name == name]

            async def trouble(wanted: str) -> None:
                """Wait until the state says what is wrong."""
                async with asyncio.timeout(20.0):
                    while True:
                        async with session.get(f"{server.url}/v2/clover/state") as answer:
                            said = (await answer.json())["intensity"].get("trouble", "")
                        if said.endswith(wanted) if wanted else not said:
                            return
                        await asyncio.sleep(0.05)

            async def comes(wanted: str) -> None:
                await until(lambda: chain.last is not None and chain.last.state == wanted)
                ((labels, _),) = await metrics("clover_carbon_intensity")
                assert (labels["state"], labels["provider"], labels["zone"]) == (wanted, "neso", "GB")

            def kept() -> set[tuple[str, str]]:
                """Return who gave the intensities that the ledger has, and how they were known."""
                with LedgerReader(tmp_path / "ledger" / "drill.db") as ledger:
                    return {(row.provider, row.known) for row in ledger.grid()}

            async def page() -> str:
                """Return what the dashboard is greeted with."""
                async with session.get(f"{server.url}/dashboard/stream") as stream:
                    await stream.content.readuntil(b"\n\n")  # when to come back
                    return (await stream.content.readuntil(b"\n\n")).decode()

            loading = asyncio.create_task(load(session, server.url, statuses))
            await comes("fresh")
            await until(lambda: chain.links[0].bridge.expected(wall() + 3 * HOUR) is not None)
            await trouble("")
            await until(kept)
            assert ("neso", "bridged") not in kept(), kept()
            replay.fault = lambda request: DOWN
            ahead[0] = HOUR
            await comes("stale")
            await trouble("answers 503 Status: closed for maintenance")
            ahead[0] = 4 * HOUR
            await comes("forecast")
            await until(lambda: ("neso", "bridged") in kept())
            assert "closed for maintenance" in await page()
            ahead[0] = 3 * DAY
            await comes("seasonal")
            replay.fault = None
            ahead[0] += HOUR
            await comes("fresh")
            await trouble("")
            assert ({"source": "neso", "kind": "status"}, pytest.approx(3, abs=3)) in await metrics(
                "clover_carbon_failures_total"
            )
            ((labels, calls),) = await metrics("clover_carbon_calls_total")
            assert (labels, calls > 4) == ({"source": "neso"}, True)
            loading.cancel()
            await asyncio.wait([loading])
            assert len(statuses) > 100
            assert set(statuses) == {200}
        assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    before = descriptors()
    with CarbonServer(wall) as replay:
        asyncio.run(main(replay))
    assert descriptors() <= before + 2


def test_a_key_that_is_refused_stops_the_start_in_the_providers_words(scenes: Forks, tmp_path: Path) -> None:
    with CarbonServer(time.time) as replay:
        tables = [{"name": "electricity-maps", "key": f"not-{KEY}", "url": replay.url}]
        own = {"CLOVER_CARBON_PROVIDER": json.dumps(tables)}
        environ = {name: value for name, value in os.environ.items() if not name.startswith("CLOVER_")} | own
        words = [TOY, "--port", "0", "--carbon", "electricity-maps:DE,static:300", "--cache-dir", str(tmp_path)]
        done = scenes.run(SERVE, words, environ, within_s=60)
    assert done.returncode == 2
    assert "clover: carbon source electricity-maps:DE: " in done.stderr
    assert "answers 401 Status: Unauthorized: Invalid auth-token" in done.stderr
    assert KEY not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
