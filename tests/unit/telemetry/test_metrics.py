"""What Prometheus reads."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from clover.accounting import Account, WorkerMeter
from clover.accounting.embodied import EmbodiedLedger, Hardware
from clover.accounting.sci import sci
from clover.control.baselines.saved import Compared
from clover.http.server_state import HttpStats
from clover.runtime.router.traffic import Traffic
from clover.telemetry.ledger.writing import LedgerStatus
from clover.telemetry.metrics import Metrics
from clover.telemetry.metrics.energy import COMPARED, ENERGY
from clover.types import Asked, EnergySample, Method, Reading

MS = 1_000_000
SECOND = 1000 * MS
SUMMED = ("idle_no_request", "awake", "unattributed")


GUARDED: dict[str, Any] = {
    "state": "tightened",
    "watches": True,
    "alarms": 2,
    "inputs": 900,
    "repeats": 70,
    "returns": 1,
    "pattern": {"kind": "client"},
    "variants": {
        "small": {
            "scores": {"rows": 900, "statistic": 1e8, "limit": 1e8, "alarmed": True},
            "own": {"rows": 40, "statistic": 5.0, "limit": 10.0, "alarmed": False, "agreement": 0.9, "expected": 0.93},
        }
    },
    "audits": {
        "on": True,
        "share": 0.02,
        "owed": 0.5,
        "lowest_share": 0.001,
        "answered": 30,
        "free": 10,
        "dropped": {"full": 3},
        "energy_j": 1.5,
        "method": "modelled",
    },
    "feedback": {
        "estimate": {"accuracy": 90.0, "low": 80.0, "high": 95.0, "rows": 50, "source": "feedback"},
        "variants": {"small": {"accuracy": 90.0, "low": 80.0, "high": 95.0, "rows": 50, "source": "feedback"}},
        "largest_share": 0.75,
        "refused": {"unknown": 3, "unfit": 0, "limited": 7},
    },
}


def source() -> Any:
    traffic = Traffic(["small", "large"])
    for latency_ms in (2, 2, 30):
        traffic.record_outcome(200, arrival_ns=0, submit_ns=0, done_ns=latency_ms * MS, queue_ns=MS, compute_ns=MS)
    traffic.record_refusal(429)
    traffic.batch(0, 3, 0, MS, SECOND)
    traffic.batch(1, 8, 0, MS, SECOND)
    traffic.poisoned = 1
    traffic.relieved_rows, traffic.diverted_rows, traffic.retried_rows = 4, 5, 6
    traffic.record_overload("late")
    return SimpleNamespace(
        traffic=traffic,
        ready=True,
        left_out=SimpleNamespace(lines=7),
        asleep=False,
        wake_s=0.5,
        fleet=SimpleNamespace(
            restarts=2,
            missing=1,
            given_up=3,
            shares={"small": 0.25, "large": 0.75},
            accuracy_demand=lambda: {"large": Asked(accuracy=90.0, rows_per_s=1.5, rows=9, waiting=2, refused=3)},
            observe=lambda: {"queue_rows": 5.0, "accuracy_served": 85.5, "workers": 2.0},
        ),
        router=SimpleNamespace(
            cached=SimpleNamespace(cache=SimpleNamespace(hits=3, misses=1, evicted=2, bytes=100)),
            feedback=SimpleNamespace(estimate=lambda: GUARDED["feedback"]["estimate"]),
            guard_report=lambda: GUARDED,
        ),
        targets={"slo_ms": 20.0, "accuracy_floor": 84.0},
        corrections={("small", "1c", "time"): 1.5, ("small", "1c", "energy"): 0.9},
        budget={"allowed": 0.5, "spent": 0.25},
        capacity={"running": 850.0, "floor": 1700.0},
        slo={"held": 9.0, "missed": 1.0, "alarm": 0.0, "held_ratio": 0.9},
    )


def scrape(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("method", "known"),
    [("published", "measured"), *((each, "modelled") for each in ("estimated", "forecast", "synthetic", "configured"))],
)
def test_measured_never_stands_beside_a_gram_whose_intensity_was_not(method: Any, known: str) -> None:
    account = Account(pue=1.0)
    account.add_device("cpu0", 1)
    account.add_device("gpu0", 1)
    meters = [
        account.attach(WorkerMeter(family="m", variant="small", device=device, placement="p", slices=1))
        for device in ("cpu0", "gpu0")
    ]
    reading = Reading(g_per_kwh=3.6e6, at_s=0.0, provider="x", method=method)
    ways: tuple[tuple[str, Method], ...] = (("cpu0", "measured"), ("gpu0", "modelled"))
    for second, total_j in ((0, 0.0), (1, 10.0)):
        for device, how in ways:
            account.close_window(
                EnergySample(device=device, at_ns=second * SECOND, total_j=total_j, idle_w=2.0, method=how), reading
            )
        for meter in meters:
            meter.add(1, SECOND, SECOND)
    chain: Any = SimpleNamespace(last=reading, errors={}, live={})
    found = scrape(Metrics(families=dict, account=account, chain=chain, http=HttpStats, decisions=dict, turned=dict))
    grams = {key: value for key, value in found.items() if "carbon_grams_total" in key[0]}
    ways_of_grams = {dict(labels)["method"] for _, labels in grams}
    assert ways_of_grams == {known, "modelled"}
    assert all(dict(labels)["intensity"] == method for _, labels in grams)
    assert sum(grams.values()) == pytest.approx(20.0)
    assert account.devices()["cpu0"]["intensity"] == method
    assert account.devices()["cpu0"]["grams_method"] == known


def test_the_figures_of_a_family_are_there() -> None:
    account = Account(pue=1.0)
    account.add_device("cpu0", 1)
    meter = account.attach(WorkerMeter(family="m", variant="small", device="cpu0", placement="p", slices=1))
    reading = Reading(g_per_kwh=300.0, at_s=0.0, provider="static", signal="average", method="configured", age_s=7.0)
    for second, total_j in ((0, 0.0), (1, 10.0)):
        account.close_window(
            EnergySample(device="cpu0", at_ns=second * SECOND, total_j=total_j, idle_w=2.0, method="measured"), reading
        )
        meter.add(1, SECOND, SECOND)
    chain: Any = SimpleNamespace(last=reading, errors={("static", "status"): 3}, live={})
    http = HttpStats()
    for _ in range(3):
        http.record_answer(200)
    http.open_connections, http.accepted_connections, http.refused_connections = 2, 6, 1
    http.deadlines_missed, http.sent_bytes = 3, 9
    found = scrape(
        Metrics(
            families=lambda: {"m": source()},
            account=account,
            chain=chain,
            http=lambda: http,
            decisions=lambda: {"applied": 2},
            turned=lambda: {"toy": (3, 5)},
        )
    )

    def value(name: str, **labels: str) -> float:
        return found[name, tuple(sorted(labels.items()))]

    assert value("clover_cache_rows_total", model="m", outcome="hit") == 3
    assert value("clover_cache_rows_total", model="m", outcome="miss") == 1
    assert value("clover_cache_evicted_rows_total", model="m") == 2
    assert value("clover_cache_bytes", model="m") == 100
    assert value("clover_requests_total", model="m", code="200", tenant="") == 3
    assert value("clover_requests_total", model="m", code="429", tenant="") == 1
    assert value("clover_overload_requests_total", model="m", why="late") == 1
    assert value("clover_rows_total", model="m", variant="large", tenant="") == 8
    assert value("clover_pending_rows", model="m", state="queued") == 5
    assert value("clover_accuracy_percent", model="m", of="served") == 85.5
    assert value("clover_accuracy_percent", model="m", of="floor") == 84
    assert value("clover_accuracy_percent", model="m", of="labels_low") == 80
    assert value("clover_route_share", model="m", variant="large") == 0.75
    assert value("clover_slo_seconds", model="m") == 0.02
    assert value("clover_slo_held_ratio", model="m") == 0.9
    assert value("clover_slo_windows_total", model="m", slo="held") == 9
    assert value("clover_slo_windows_total", model="m", slo="missed") == 1
    assert value("clover_slo_alarm", model="m") == 0
    assert value("clover_worker_events_total", model="m", event="restarted") == 2
    assert value("clover_worker_events_total", model="m", event="given_up") == 3
    assert value("clover_workers", model="m", state="ready") == 2
    assert value("clover_workers", model="m", state="missing") == 1
    assert value("clover_log_dropped_lines_total", source="worker", model="m") == 7
    assert value("clover_poison_requests_total", model="m") == 1
    assert value("clover_rerouted_rows_total", model="m", why="relief") == 4
    assert value("clover_rerouted_rows_total", model="m", why="late") == 5
    assert value("clover_rerouted_rows_total", model="m", why="died") == 6
    assert value("clover_ready", model="m") == 1
    assert value("clover_batch_size_bucket", model="m", le="4") == 1
    assert value("clover_batch_size_bucket", model="m", le="8") == 2
    assert value("clover_batch_size_sum", model="m") == 11
    assert value("clover_request_seconds_bucket", model="m", le="0.005") == 2
    assert value("clover_request_seconds_bucket", model="m", le="+Inf") == 3
    assert value("clover_request_seconds_count", model="m") == 3
    assert value("clover_queue_seconds_count", model="m") == 3
    energy = {"device": "cpu0", "model": "m", "variant": "small", "method": "measured"}
    assert value("clover_energy_joules_total", line="active", **energy) == 8
    assert value("clover_energy_joules_total", line="idle", **energy) == 2
    stated = energy | {"method": "modelled", "intensity": "configured"}
    assert value("clover_carbon_grams_total", line="active", **stated) == 8 / 3.6e6 * 300
    assert value("clover_worker_cpu_seconds_total") == account.cpu_seconds() > 0
    intensity = {
        "provider": "static",
        "zone": "",
        "signal": "average",
        "scope": "unknown",
        "method": "configured",
        "replayed": "false",
        "state": "fresh",
    }
    assert value("clover_carbon_intensity", **intensity) == 300
    assert value("clover_carbon_age_seconds", provider="static") == 7
    assert value("clover_carbon_failures_total", source="static", kind="status") == 3
    assert value("clover_decisions_total", action="applied") == 2
    assert value("clover_plan_changes_total", model="toy", change="deployment") == 3
    assert value("clover_plan_changes_total", model="toy", change="thresholds") == 5
    assert value("clover_accuracy_budget_points", model="m", part="spent") == 0.25
    assert value("clover_capacity_rows_per_second", model="m", of="floor") == 1700.0
    assert value("clover_profile_correction", model="m", variant="small", profile="1c", kind="time") == 1.5
    assert value("clover_profile_correction", model="m", variant="small", profile="1c", kind="energy") == 0.9
    assert value("clover_http_open_connections") == 2
    assert value("clover_http_connections_total", outcome="taken") == 5
    assert value("clover_http_connections_total", outcome="refused") == 1
    assert value("clover_http_closed_connections_total", reason="slow") == 3
    assert value("clover_http_bytes_total", direction="sent") == 9
    assert value("clover_http_answers_total", code="200") == 3
    assert any(name == "clover_build_info" for name, _ in found)


def test_every_gpu_has_its_lines_and_their_labels() -> None:
    account = Account(pue=1.0)
    reading = Reading(g_per_kwh=300.0, at_s=0.0, provider="static")

    def window(second: int, total_j: float, device: str, method: Method, epoch: int = 0) -> None:
        account.close_window(
            EnergySample(
                device=device, at_ns=second * SECOND, total_j=total_j, idle_w=70.0, method=method, epoch=epoch
            ),
            reading,
        )

    methods: dict[str, Method] = {"gpu0": "measured", "gpu1": "emulated"}
    for device, method in methods.items():
        account.add_device(device, 7)
        place = f"{device}:3g.20gb@0"
        account.attach(WorkerMeter(family="m", variant="small", device=device, placement=place, slices=3)).add(
            1, SECOND, SECOND
        )
        window(0, 0.0, device, method)
    window(1, 100.0, "gpu0", "measured")
    window(1, 50.0, "gpu1", "emulated")  # below idle
    window(1, 50.0, "gpu1", "emulated")  # nothing new
    window(2, 50.0, "gpu0", "measured", epoch=1)
    chain: Any = SimpleNamespace(last=None, errors={}, live={})
    found = scrape(Metrics(families=dict, account=account, chain=chain))

    def value(name: str, device: str, method: str, **labels: str) -> float | None:
        return found.get((name, tuple(sorted({"device": device, "method": method, **labels}.items()))))

    assert value("clover_device_watts", "gpu0", "measured") == 100
    assert value("clover_device_watts", "gpu1", "emulated") is None  # not metered now
    assert value("clover_device_idle_watts", "gpu1", "emulated", part="bare") == 70
    assert value("clover_device_metered", "gpu0", "measured") == 1
    assert value("clover_device_metered", "gpu1", "emulated") == 0
    for device, method, total_j, carried_j in (("gpu0", "measured", 100, 0), ("gpu1", "emulated", 50, -20)):
        lines: dict[str, float] = {}
        for (name, pairs), joules in found.items():
            labels = dict(pairs)
            if name == "clover_energy_joules_total" and labels["device"] == device:
                assert labels["method"] == method
                lines[labels["line"]] = lines.get(labels["line"], 0.0) + joules
        assert account.devices()[device]["carried_j"] == carried_j
        assert sum(lines.values()) + carried_j == pytest.approx(total_j)
        assert lines["unowned"] == pytest.approx(40)


def test_what_being_awake_costs_and_others_on_a_gpu_are_shown() -> None:
    account = Account(pue=1.0)
    account.add_device("gpu0", 7)
    account.attach(WorkerMeter(family="m", variant="small", device="gpu0", placement="p", slices=7))
    for second, shared in enumerate(((), (), ("python (4711)",), ())):
        sample = EnergySample(
            device="gpu0", at_ns=second * SECOND, total_j=100.0 * second, idle_w=50.0, method="measured",
            awake_w=35.0, awake_j=35.0 * second, shared=shared,
        )  # fmt: skip
        account.close_window(sample, Reading(g_per_kwh=300.0, at_s=0.0, provider="static"))
    chain: Any = SimpleNamespace(last=None, errors={}, live={})
    found = scrape(Metrics(families=dict, account=account, chain=chain))
    labels = (("device", "gpu0"), ("method", "measured"))
    assert found["clover_device_idle_watts", (labels[0], labels[1], ("part", "awake"))] == 35
    assert found["clover_device_shared_seconds_total", labels] == 2
    lines = dict.fromkeys(SUMMED, 0.0)
    for (name, pairs), joules in found.items():
        if name == "clover_energy_joules_total" and (line := dict(pairs)["line"]) in lines:
            lines[line] += joules
    assert lines == {"idle_no_request": 150, "awake": pytest.approx(105), "unattributed": pytest.approx(45)}
    assert sum(lines.values()) == pytest.approx(account.devices()["gpu0"]["measured_j"])


def test_savings_have_counters_of_both_sides_and_may_be_negative() -> None:
    rows = [
        Compared(
            *("m", kind, "modelled"),
            served_g=5.0,
            shadow_g=4.0,
            points=-0.25,
            grid="synthetic",
            estimates=(("likely", -1.0), ("low", -3.0)),
        )
        for kind in ("base", "matched")
    ]
    chain: Any = SimpleNamespace(last=None, errors={}, live={})
    found = scrape(Metrics(families=dict, account=Account(pue=1.0), chain=chain, compared=lambda: rows))

    def value(name: str, **labels: str) -> float | None:
        return found.get((name, tuple(sorted({"model": "m", "method": "modelled", **labels}.items()))))

    for kind in ("base", "matched"):
        assert value("clover_accuracy_given_up_points", against=kind) == -0.25
        labels = {"against": kind, "grid": "synthetic"}
        name = "clover_saved_carbon_grams"
        assert value(name, estimate="likely", **labels) == -1
        assert value(name, estimate="low", **labels) == -3
        counted = kind != "matched"  # it is another mix with every row, and a counter never falls
        for side, grams in (("served", 5), ("shadow", 4)):
            carbon = value("clover_counterfactual_carbon_grams_total", against=kind, side=side)
            assert carbon == (grams if counted else None)


def test_help_says_within_what_and_on_what_grid_savings_are_and_that_metered_joules_may_be_modelled() -> None:
    known = {spec.name: spec.help for spec in COMPARED} | {spec.name: spec.help for spec in ENERGY}
    for what in ("counterfactual_carbon_grams", "saved_carbon_grams"):
        assert "within the boundary server" in known[f"clover_{what}"]
        assert "(grid), which may be invented" in known[f"clover_{what}"]
    assert "method (measured, modelled or emulated)" in known["clover_energy_joules"]


def test_an_idle_server_can_be_scraped() -> None:
    chain: Any = SimpleNamespace(last=None, errors={}, live={})
    idle = source()
    idle.traffic = Traffic(["small", "large"])
    idle.fleet.observe = dict
    found = scrape(Metrics(families=lambda: {"m": idle}, account=Account(pue=1.0), chain=chain))
    assert found["clover_batch_size_count", (("model", "m"),)] == 0
    assert found["clover_batch_size_bucket", (("le", "1"), ("model", "m"))] == 0


def test_what_watches_over_answers_is_told() -> None:
    chain: Any = SimpleNamespace(last=None, errors={}, live={})
    found = scrape(Metrics(families=lambda: {"m": source()}, account=Account(pue=1.0), chain=chain))
    model = ("model", "m")
    small = (model, ("variant", "small"))
    assert found["clover_guard_state", (model,)] == 1.0
    assert found["clover_guard_alarms_total", (model,)] == 2.0
    assert found["clover_guard_pattern", (model, ("pattern", "client"))] == 1.0
    assert found["clover_guard_pattern", (model, ("pattern", "drift"))] == 0.0
    assert found["clover_guard_statistic", (("kind", "own"), *small)] == 0.5
    assert found["clover_agreement", (("kind", "own"), model, ("part", "seen"), small[1])] == 0.9
    assert found["clover_audits_total", (model, ("outcome", "full"))] == 3.0
    assert found["clover_feedback_rows_total", small] == 50.0
    assert found["clover_feedback_refused_total", (model, ("reason", "limited"))] == 7.0


def test_embodied_carbon_and_grams_a_row_say_how_they_are_known() -> None:
    box = Hardware(
        device="cpu0",
        product="a machine",
        kg=1000.0,
        reserved=1.0,
        total=1.0,
        for_workers=1.0,
        slices=2,
        known="configured",
        source="",
    )
    unknown = Hardware(
        device="gpu0",
        product="X",
        kg=None,
        reserved=7.0,
        total=7.0,
        for_workers=7.0,
        slices=7,
        known="unknown",
        source="",
    )

    def scraped(*hardware: Hardware) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        ledger = EmbodiedLedger(hardware, 4.0, 0)
        held = (("m", "cpu0", 1), ("g", "gpu0", 7))
        workers = [
            WorkerMeter(family=name, variant="v", device=device, placement="p", slices=slices)
            for name, device, slices in held
        ]
        ledger.charge(365 * 86_400 * SECOND, workers)
        lines = {"active_g": 9.0, "idle_g": 1.0, "front_end_g": 0.0, "control_g": 0.0, "unowned_g": 0.0}
        lines |= {"awake_g": 0.0, "idle_no_request_g": 0.0, "waiting_g": 0.0}
        models = {"m": (100, {"carbon_g": 10.0}), "g": (1, {"carbon_g": 0.0})}
        report = sci({"cpu0": {**lines, "method": "measured"}}, models, ledger, intensities={"synthetic"}, pue=1.5)
        chain: Any = SimpleNamespace(last=None, errors={}, live={})
        return scrape(Metrics(families=dict, account=Account(pue=1.0), chain=chain, sci=lambda: report))

    found = scraped(box)
    for model in ("", "m"):  # a worker holds one core of two
        labels = (("device", "cpu0"), ("method", "configured"), ("model", model))
        assert found["clover_embodied_carbon_grams_total", labels] == 125_000
    ways = {"embodied": "configured", "energy": "measured", "grams_method": "modelled", "intensity": "synthetic"}
    known = tuple(ways.items())
    assert found["clover_sci_grams_per_row", (("boundary", "server"), *known, ("model", ""))] == 250_010 / 101
    assert found["clover_sci_grams_per_row", (("boundary", "workers"), *known, ("model", "m"))] == (10 + 125_000) / 100
    found = scraped(box, unknown)
    shown = [dict(pairs) for name, pairs in found if name == "clover_embodied_carbon_grams_total"]
    assert {item["device"] for item in shown} == {"cpu0"}
    assert "g" not in {item["model"] for item in shown}
    assert not [pairs for name, pairs in found if name == "clover_sci_grams_per_row" and ("model", "") in pairs]


def test_what_tenants_sent_and_used_sums_to_the_models() -> None:
    account = Account(pue=1.0)
    account.add_device("cpu0", 1)
    meter = account.attach(WorkerMeter(family="m", variant="small", device="cpu0", placement="p", slices=1))
    reading = Reading(g_per_kwh=3.6e6, at_s=0.0, provider="x", method="published")
    for second, total_j in ((0, 0.0), (1, 12.0)):
        sample = EnergySample(device="cpu0", at_ns=second * SECOND, total_j=total_j, idle_w=2.0, method="measured")
        account.close_window(sample, reading)
        meter.add(4, SECOND, SECOND)
        meter.charge(["acme", "acme", "acme", ""])
    model = source()
    model.traffic.for_tenant("acme").count(429)
    model.traffic.for_tenant("acme").limited = 1
    model.traffic.record_tenants(0, ["acme"] * 2)
    chain: Any = SimpleNamespace(last=reading, errors={}, live={})
    found = scrape(Metrics(families=lambda: {"m": model}, account=account, chain=chain))

    def of(name: str, **labels: str) -> dict[tuple[str, ...], float]:
        """Return the samples by tenant and the labels that are not given."""
        picked = {}
        for (metric, pairs), value in found.items():
            own = dict(pairs)
            if metric == name and labels.items() <= own.items():
                picked[tuple(own[key] for key in sorted(own) if key not in labels)] = value
        return picked

    assert of("clover_requests_total", model="m") == {("200", ""): 3, ("429", "acme"): 1}
    assert of("clover_tenant_limited_requests_total", model="m") == {("acme",): 1}
    assert of("clover_rows_total", model="m", variant="small") == {("",): 1, ("acme",): 2}
    assert of("clover_tenant_energy_joules_total", method="measured") == {
        ("m", "", "small"): pytest.approx(2.5),
        ("m", "acme", "small"): pytest.approx(7.5),
    }
    assert sum(of("clover_tenant_carbon_grams_total", intensity="published").values()) == pytest.approx(10.0)
    assert sum(of("clover_rows_total").values()) == sum(model.traffic.rows)


def test_without_tenants_there_are_no_samples_of_any() -> None:
    chain: Any = SimpleNamespace(last=None, errors={}, live={})
    found = scrape(Metrics(families=lambda: {"m": source()}, account=Account(pue=1.0), chain=chain))
    assert not [name for name, _ in found if name.startswith("clover_tenant")]


def test_gpus_that_may_be_parked_say_whether_they_are() -> None:
    chain: Any = SimpleNamespace(last=None, errors={}, live={})
    parked = {"gpu0": False, "gpu1": True}
    found = scrape(Metrics(families=dict, account=Account(pue=1.0), chain=chain, parked=lambda: parked))
    assert found["clover_device_parked", (("device", "gpu0"),)] == 0.0
    assert found["clover_device_parked", (("device", "gpu1"),)] == 1.0


def test_the_ledger_says_whether_it_is_written() -> None:
    chain: Any = SimpleNamespace(last=None, errors={}, live={})
    kept: list[LedgerStatus | None] = [None]
    metrics = Metrics(families=dict, account=Account(pue=1.0), chain=chain, ledger=lambda: kept[0])
    assert not any(name.startswith("clover_ledger") for name, _ in scrape(metrics))
    status = LedgerStatus(Path("a.db"), state="failing", dropped_rows=2)
    status.failures["full"] = 4
    kept[0] = status
    found = scrape(metrics)
    assert (found["clover_ledger_up", ()], found["clover_ledger_dropped_rows_total", ()]) == (0.0, 2.0)
    assert found["clover_ledger_failures_total", (("reason", "full"),)] == 4.0
    status.state = "writing"
    assert scrape(metrics)["clover_ledger_up", ()] == 1.0
