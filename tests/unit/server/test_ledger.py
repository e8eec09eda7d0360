"""What a server gives to its ledger: everything that its account has, and no secret."""

from __future__ import annotations

import asyncio
import json
import random
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from clover.accounting import Account, WorkerMeter
from clover.accounting.devices import IDLE
from clover.config import LedgerConfig, ListenConfig, ServerConfig, TenantConfig
from clover.control.baselines.comparison import ComparisonSums, Overheads, Window
from clover.control.state.decisions import DecisionEntry, Decisions
from clover.http.audit import AuditLog
from clover.runtime.router.traffic import Traffic
from clover.server.ledger import ServerLedger, public
from clover.server.ledger_source import LedgerSource, known_as
from clover.telemetry.ledger import LedgerReader
from clover.telemetry.ledger.files import ledger_path
from clover.types import EnergySample, Method, Reading

SECOND_NS = 1_000_000_000
MS_NS = 1_000_000
READING = Reading(g_per_kwh=300.0, at_s=0.0, provider="neso", zone="GB", signal="average", method="published")
DEVICES = ("cpu0", "gpu0")


class Scene:
    """A server of fakes around a real account, with a clock of its own."""

    def __init__(self, folder: Path) -> None:
        self.wall = 1_790_035_230.0
        self.mono = 1000.0
        self.account = Account(pue=1.5)
        self.meters = [
            self.account.attach(
                WorkerMeter(family="m", variant=variant, device=device, placement=f"{device}:1c@{at}", slices=1)
            )
            for device in DEVICES
            for at, variant in enumerate(("small", "large"))
        ]
        for device in DEVICES:
            self.account.add_device(device, 2)
        self.account.add_family("m")
        self.traffic = Traffic(["small", "large"])
        self.metered = dict.fromkeys(DEVICES, 0)
        self.joules = dict.fromkeys(DEVICES, 0.0)
        self.decisions = Decisions(lambda: self.wall)
        self.events: deque[dict[str, Any]] = deque()
        served: Any = SimpleNamespace(
            traffic=self.traffic,
            router=SimpleNamespace(feedback=SimpleNamespace(labelled=[4, 2], right=[3, 2])),
            targets={"slo_ms": 20.0},
            fleet=SimpleNamespace(events=self.events),
            profile=None,
        )
        context = SimpleNamespace(families={}, decisions=self.decisions, grid=SimpleNamespace(trouble="it is silent"))
        controller: Any = SimpleNamespace(context=context, shadows=SimpleNamespace(by_family={}))
        machine: Any = SimpleNamespace(metered_ns=lambda: dict(self.metered))
        self.config = ServerConfig(
            ledger=LedgerConfig(keep="on", name="scene"), listen=ListenConfig(token="hush"), state_dir=str(folder)
        )
        self.served, self.audit = {"m": served}, AuditLog()
        self.shadows = controller.shadows.by_family
        self.ledger = ServerLedger(
            self.config,
            LedgerSource(self.account, machine, self.served, controller, self.audit),
            self.account,
            (),
            wall=lambda: self.wall,
            monotonic=lambda: self.mono,
        )
        self.path = ledger_path(str(folder), "scene")

    def second(self, chance: random.Random, reading: Reading = READING) -> None:
        """Let a second pass, with work, and sometimes without a reading of a meter."""
        self.wall, self.mono = self.wall + 1.0, self.mono + 1.0
        now_ns = int(self.mono * SECOND_NS)
        for meter in self.meters:
            rows = chance.randrange(4)
            if rows:
                meter.add(rows, 20 * MS_NS, 20 * MS_NS)
                self.traffic.batch(0 if meter.variant == "small" else 1, rows, 0, MS_NS, now_ns)
                self.account.count_answered("m", rows)
                self.account.receipt("m", meter.variant, 90.0, rows, 0.01 * rows, chance.choice(("acme", "")))
                for _ in range(rows):
                    took_ns = chance.randrange(40) * MS_NS
                    self.traffic.record_outcome(200, now_ns - took_ns, now_ns - took_ns, now_ns, 0, MS_NS)
        for device in DEVICES:
            self.joules[device] += chance.uniform(5.0, 15.0)
            if chance.random() < 0.8:
                self.metered[device] = now_ns
                method: Method = "measured" if device == "gpu0" else "modelled"
                sample = EnergySample(
                    device=device, at_ns=now_ns, total_j=self.joules[device], idle_w=3.0, method=method
                )
                self.account.close_window(sample, reading, now_ns)
        self.ledger.tick(reading)


@pytest.mark.parametrize("opened", [0, 390], ids=["at once", "once another server has left the file"])
def test_the_ledger_has_what_the_account_has(tmp_path: Path, opened: int) -> None:
    scene, chance = Scene(tmp_path), random.Random(3)
    for second in range(400):
        if second == opened:
            assert not scene.path.exists()
            scene.ledger.start()
        if second == 200:
            scene.wall -= 100.0  # the clock is set back
        scene.second(chance)
    scene.ledger.serve(scene.served)
    asyncio.run(scene.ledger.close())
    account = scene.account
    with LedgerReader(scene.path) as ledger:
        lines = ledger.lines()
        for device, line, method, sums in account.lines():
            own = [row for row in lines if (row.device, row.line) == (device, line)]
            assert round(sum(row.joules for row in own) * 1e6) == round(sums.joules * 1e6)
            assert round(sum(row.grams for row in own) * 1e9) == round(sums.grams * 1e9)
            assert {row.label for row in own} <= {method}
        usage = ledger.usage()
        idle = account.by_variant(*IDLE)
        for key, active in account.by_variant("active").items():
            _, variant, method = key
            own_usage = [row for row in usage if (row.variant, row.label) == (variant, method)]
            # Rounded apart for each slice and tenant, of which there are four here.
            assert sum(row.active_j for row in own_usage) == pytest.approx(active.joules, abs=4e-6)
            assert sum(row.idle_j for row in own_usage) == pytest.approx(idle[key].joules, abs=4e-6)
        for tenant in ("acme", ""):
            own_j = sum(row.receipts_j for row in usage if row.tenant == tenant)
            assert round(own_j * 1e6) == round(account.receipts_j["m", tenant] * 1e6)
        assert sum(row.rows for row in usage) <= sum(scene.traffic.rows)  # of the open window: not yet in the account
        assert sum(row.requests for row in usage) == sum(row.ok for row in usage) == scene.traffic.codes[200]
        assert {row.slice for row in usage if row.active_j} == {"1c@0", "1c@1"}
        quality = ledger.quality()
        assert sum(row.rows for row in quality) == sum(scene.traffic.rows)
        late = scene.traffic.latency.count - scene.traffic.latency.buckets([20e6])[0]
        assert sum(row.violations for row in quality) == late > 0
        assert sum(row.labelled for row in quality) == 6
        grid = ledger.grid()
        assert {(row.known, row.provider, row.zone) for row in grid} == {("live", "neso", "GB")}
        assert sum(row.seconds for row in grid) == pytest.approx(400.0)
        assert sum(row.joules for row in grid) == pytest.approx(sum(row.joules for row in lines))
        assert all(row.net_g / row.joules * 3.6e6 == pytest.approx(300.0, rel=1e-4) for row in grid if row.joules)
        assert [event.summary for event in ledger.events(kinds=["fault"])] == [
            "the wall clock moved by -100.0 s that did not pass: it was set, or the machine slept"
        ]
        (run,) = ledger.runs()
        facts = json.loads(run.facts)
        assert (facts["pue"], facts["devices"]["gpu0"]["method"]) == (1.5, "measured")
        assert "hush" not in run.configuration
        assert json.loads(run.configuration)["listen"]["token"] == "***"


def test_one_that_was_never_opened_writes_nothing(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.second(random.Random(3))
    asyncio.run(scene.ledger.close())
    assert not scene.path.exists()


def test_comparisons_begin_before_the_first_row(tmp_path: Path) -> None:
    """Else all idle power from before it would be of the minute of that row."""
    scene = Scene(tmp_path)
    sums = ComparisonSums.over(1)
    shadow = SimpleNamespace(
        matched=ComparisonSums.over(1), on_base=sums, methods=(),
        off=np.zeros(1),
    )  # fmt: skip
    scene.shadows["m"] = shadow
    scene.ledger.start()
    second = np.array([3.0, 0.25])
    for at in range(180):
        overheads = Overheads.none()
        overheads.unowned = second
        sums.overheads.add(overheads)
        if at == 120:
            window = Window(Overheads.none(), 5, 450.0, second, second[None], np.ones(2))
            sums.add_window(window, 95.0, np.array([1.0]))
        scene.second(random.Random(1))
    asyncio.run(scene.ledger.close())
    with LedgerReader(scene.path) as ledger:
        rows = [row for row in ledger.saved() if (row.against, row.boundary) == ("base", "server")]
        assert not [row for row in ledger.saved() if row.against == "fixed"]  # nothing was compared
    assert [row.rows for row in rows] == [0, 0, 5, 0]
    assert [row.own_j for row in rows] == pytest.approx([90.0, 180.0, 183.0, 90.0], abs=9.0)
    assert (rows[0].saved_j, rows[0].accuracy_given_up) == (0.0, None)


def test_what_happens_becomes_events(tmp_path: Path) -> None:
    scene, chance = Scene(tmp_path), random.Random(1)
    scene.ledger.start()
    entry: dict[str, Any] = {"family": "m", "mode": "active", "grid_s": 0.0}
    scene.decisions.record(DecisionEntry(trigger="start", action="applied", **entry))
    scene.decisions.record(DecisionEntry(trigger="set", action="kept", operator="ada", **entry))
    scene.decisions.record(DecisionEntry(trigger="rate", action="failed", detail="no worker", **entry))
    huge: Any = {"x": "y" * 50_000}
    scene.decisions.record(DecisionEntry(trigger="rate", action="kept", inputs=huge, **entry))
    event = {
        "at_ns": int(1001.0 * SECOND_NS),
        "what": "died",
        "variant": "small",
        "at": "cpu0:1c@0",
        "reason": "signal 9",
    }
    scene.events.append(event)
    scene.second(chance)
    stale = msgspec.structs.replace(READING, state="stale", age_s=900.0)
    for _ in range(2):
        for _ in range(10):
            scene.second(chance, stale)
    asyncio.run(scene.ledger.close())
    with LedgerReader(scene.path) as ledger:
        events = ledger.events()
    found = [(item.kind, item.summary.split(",")[0]) for item in events]
    assert sorted(found, key=lambda item: item[0]) == [
        ("configuration", found[0][1]),
        ("decision", "kept: rate"),
        *[item for item in found if item[0] == "fault"],
        ("operator", "kept: set"),
        ("provider", "neso GB: fresh"),
        ("provider", "neso GB: stale"),
        ("transition", "applied: start"),
    ]
    assert [text for kind, text in found if kind == "fault"] == [
        "failed: rate: no worker",
        "worker of small on cpu0:1c@0 died: signal 9",
    ]
    assert all(len(item.detail) < 20_000 for item in events)
    assert next(item for item in events if "stale" in item.summary).summary.endswith("(it is silent)")


def test_control_calls_that_were_too_many_are_counted(tmp_path: Path) -> None:
    """Those that the audit log left out, as well as those that one write of the ledger has no room for."""

    def dropped(calls: int) -> int:
        scene, chance = Scene(tmp_path / str(calls)), random.Random(1)
        for _ in range(calls):
            scene.audit.record("token ci", "http", "freeze")
        for _ in range(60):
            scene.second(chance)
        return scene.ledger.status.dropped_rows

    assert (dropped(900), dropped(4096 + 7) - dropped(4096)) == (0, 7)


def test_trouble_with_the_ledger_does_not_reach_the_server(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(tmp_path)
    scene.served["m"].traffic = None
    for _ in range(40):
        scene.wall, scene.mono = scene.wall + 1.0, scene.mono + 1.0
        scene.ledger.tick(READING)
    assert scene.ledger.status.failures["failed"] >= 3
    assert "the ledger failed to take what was counted" in caplog.text


@pytest.mark.parametrize(
    ("changed", "known"),
    [
        ({}, "live"),
        ({"method": "unknown"}, "unknown"),
        ({"method": "unknown", "state": "stale"}, "bridged"),
        ({"estimated": True}, "estimated"),
        ({"method": "forecast"}, "estimated"),
        ({"state": "stale"}, "bridged"),
        ({"state": "forecast", "method": "forecast"}, "bridged"),
        ({"state": "seasonal", "method": "forecast"}, "bridged"),
        ({"state": "fallback"}, "live"),
        ({"state": "fallback", "age_s": 300.0, "step_s": 300.0}, "live"),
        ({"state": "fallback", "age_s": 7000.0, "step_s": 300.0}, "bridged"),
        ({"state": "fallback", "age_s": 7000.0, "step_s": 300.0, "method": "configured"}, "configured"),
        ({"method": "configured", "state": "fallback"}, "configured"),
        ({"method": "synthetic"}, "synthetic"),
        ({"replayed": True, "state": "stale"}, "replayed"),
    ],
)
def test_how_an_intensity_is_known(changed: dict[str, Any], known: str) -> None:
    assert known_as(msgspec.structs.replace(READING, **changed)) == known


def test_a_configuration_is_public_without_its_secrets_and_always_in_the_same_order() -> None:
    config = ServerConfig(listen=ListenConfig(token="sesame"))
    assert "sesame" not in public(config)
    assert public(config) == public(ServerConfig(listen=ListenConfig(token="other")))
    assert public(config) != public(ServerConfig())
    tenants = (
        TenantConfig(name="acme", token="opensesame-opensesame"),
        TenantConfig(name="umbrella", token_sha256="0123abcd" * 8),
    )
    text = public(ServerConfig(tenants=tenants))
    assert "opensesame" not in text
    assert "0123abcd" not in text
