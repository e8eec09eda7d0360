"""A replayed trace walks a server through configurations under load: nothing fails, everything is said truly."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clover
from tests.support.bands import Bands
from tests.support.servers import children
from tests.support.toy_family import TOY, expected

STAGE_S = 0.8


def trace(path: Path) -> Path:
    """One hour for each band."""
    rows = [f"2026-01-01T{hour:02}:00:00Z,{100 * hour + 50}" for hour in range(10)]
    path.write_text("\n".join(["datetime_utc,carbon_intensity_gco2_per_kwh", *rows]) + "\n", encoding="utf-8")
    return path


class Load:
    """Clients that ask one after another until told to end, and hold every answer against its own rows."""

    def __init__(self, server: clover.Server) -> None:
        self.variants: Counter[str] = Counter()
        self.sent = 0
        self._server = server
        self._ended = False

    async def client(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        while not self._ended:
            rows = random.standard_normal((random.integers(1, 4), 4)).astype(np.float32)
            self.sent += 1
            answer = await self._server.ainfer({"INPUT0": rows})
            for index, variant in enumerate(answer.variants):
                wanted = expected(variant, rows[index : index + 1])
                np.testing.assert_allclose(answer["OUTPUT0"][index : index + 1], wanted, rtol=1e-4, atol=1e-6)
            assert set(answer.receipt.variant.split("+")) == set(answer.variants)
            self.variants[answer.receipt.variant] += 1
            await asyncio.sleep(0.01)

    def end(self) -> None:
        self._ended = True


@pytest.mark.usefixtures("forked_zygotes")
def test_a_trace_swaps_variants_and_cuts_cores_anew_under_load(
    toy_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clover.control.controller.INTERVAL_S", 0.1)
    before = children()

    async def main() -> None:
        settings: dict[str, Any] = {
            "carbon": f"trace:{trace(toy_cache / 'bands.csv')}?loop=1",
            "trace_speed": 3600 / STAGE_S,
            "policy": f"{Bands.__module__}:{Bands.__name__}",
            "verify_s": 0.2,
            "slo_ms": 1000.0,
            "waits": False,
            "accuracy_floor": 1.0,
        }
        server = clover.Server(
            TOY, http=False, cache_dir=str(toy_cache), backends=("eager",), energy_meter="modelled", **settings
        )
        async with server:
            engine = server.engine
            served, control = engine.pick(None), engine.control()
            repartitions = 2 if engine.devices["cpu0"].shape().slices > 1 else 0
            load = Load(server)
            clients = [asyncio.ensure_future(load.client(seed)) for seed in range(3)]
            end_s = time.monotonic() + 30.0
            while served.fleet.swaps < 3 or served.fleet.repartitions < repartitions:
                assert time.monotonic() < end_s, control.decisions(20)
                assert not any(client.done() for client in clients)
                await asyncio.sleep(0.05)
            await control.command("freeze", {"on": True}, "a test")  # waits for a change under way
            load.end()
            await asyncio.gather(*clients)
            # Nobody failed, nobody was asked twice, and the receipts tell of several variants.
            assert served.traffic.codes == {200: load.sent}
            assert (served.traffic.lost_workers, served.traffic.retried_rows) == (0, 0)
            assert {"half", "full"} <= set(load.variants)
            decided = control.decisions(1000)
            assert {item["action"] for item in decided} <= {"applied", "routed", "kept"}
            # What the old configurations ran on is gone: only the workers in force are left, the zygote, its spare, and
            # the solver.
            assert set(served.fleet.ready_assignments()) == set(served.fleet.routed)
            assert len(served.fleet.describe()) == len(served.fleet.ready_assignments())
            end_s = time.monotonic() + 10.0
            while len(children() - before) != len(served.fleet.ready_assignments()) + 3:
                assert time.monotonic() < end_s, children() - before
                await asyncio.sleep(0.05)
            assert served.fleet.observe()["free_slots"] == served.slab.layout.slots
        assert children() == before

    asyncio.run(main())
