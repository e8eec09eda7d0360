"""A server that keeps a ledger: what is in it is what was counted, over a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clover.telemetry.ledger import LedgerReader
from clover.telemetry.ledger.files import ledger_path
from tests.support.servers import run, serve, until

pytestmark = pytest.mark.usefixtures("forked_zygotes")


def counted(server: Any) -> tuple[float, float, int]:
    """Return joules and grams of all devices, and rows answered."""
    devices = server.engine.account.devices().values()
    rows = sum(sum(served.traffic.rows) for served in server.engine.served.values())
    return sum(line["measured_j"] for line in devices), sum(line["total_g"] for line in devices), rows


def test_what_two_runs_count_is_in_the_ledger(tmp_path: Path) -> None:
    keeping = {"ledger": "on", "state_dir": str(tmp_path / "state"), "ledger_name": "toy"}
    path = ledger_path(str(tmp_path / "state"), "toy")
    joules, grams, rows = [], [], []

    async def serve_once() -> None:
        server = serve("toy", tmp_path, variant="half", **keeping)
        async with server:
            for _ in range(5):
                await server.ainfer({"INPUT0": np.zeros((2, 4), np.float32)})
            ledger = server.engine.ledger
            await until(lambda: ledger.status.state == "writing" and ledger.status.grams > sum(grams))
            state = server.engine.control().state()["totals"]["ledger"]
            assert (state["state"], state["dropped_rows"], state["path"]) == ("writing", 0, str(path))
            text = server.engine.metrics().decode()
            assert "clover_ledger_up 1.0" in text
            assert 'clover_ledger_failures_total{reason="full"} 0.0' in text
            engine = server.engine
        found = counted(type("Stopped", (), {"engine": engine}))
        for sums, value in zip((joules, grams, rows), found, strict=True):
            sums.append(value)

    run(serve_once())
    run(serve_once())
    with LedgerReader(path) as ledger:
        whole = ledger.sums()
        assert whole.joules == pytest.approx(sum(joules), abs=1e-4)
        assert whole.grams == pytest.approx(sum(grams), abs=1e-7)
        assert whole.rows == sum(rows) == 20
        assert whole.requests == 10
        assert all(run.ended is not None for run in ledger.runs())
        assert [event.kind for event in ledger.events(kinds=["configuration"])] == ["configuration"] * 2
        assert {row.known for row in ledger.grid()} == {"configured"}
        usage = ledger.usage()
        assert sum(row.joules for row in usage) <= whole.joules
        assert {row.variant for row in usage if row.rows} == {"half"}
        assert all(row.device and row.slice for row in usage if row.rows)
        assert sum(row.requests for row in ledger.quality()) == 10


def test_a_server_keeps_none_unless_asked(tmp_path: Path) -> None:
    async def serve_once() -> None:
        async with serve("toy", tmp_path, variant="half", state_dir=str(tmp_path / "state")) as server:
            assert server.engine.ledger is None
            assert server.engine.control().state()["totals"]["ledger"] is None

    run(serve_once())
    assert not (tmp_path / "state").exists()
