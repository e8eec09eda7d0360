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
from clover.control.state.parked import ParkedTime
from clover.http.server_state import HttpStats
from clover.runtime.router.traffic import Traffic
from clover.telemetry.ledger.writing import LedgerStatus
from clover.telemetry.metrics import Metrics
from clover.telemetry.metrics.energy import COMPARED, ENERGY
from clover.types import Asked, EnergySample, Method, Reading

MS = 1_000_000
SECOND = 1000 * MS
PARTS = ("active", "idle")
SUMMED = ("idle_no_request", "awake", "unattributed")


GUARDED = {
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
        traffic.finished(200, arrival_ns=0, submit_ns=0, done_ns=latency_ms * MS, queue_ns=MS, compute_ns=MS)
    traffic.refused(429)
    traffic.batch(0, 3, 0, MS, SECOND)
    traffic.batch(1, 8, 0, MS, SECOND)
    traffic.poisoned = 1
    traffic.overloaded("late")
    return SimpleNamespace(
        traffic=traffic,
        ready=True,
        restarts=2,
        missing=1,
        given_up=3,
        log_dropped_lines=7,
        log_dropped_bytes=700,
        swaps=4,
        cached=SimpleNamespace(lookup_ns=2_000_000_000, cache=SimpleNamespace(hits=3, misses=1, evicted=2, bytes=100)),
        repartitions=1,
        shares={"small": 0.25, "large": 0.75},
        targets={"slo_ms": 20.0},
        corrections={("small", "1c", "time"): 1.5, ("small", "1c", "energy"): 0.9},
        router=SimpleNamespace(front_ms=2.0),
        budget={"allowed": 0.5, "spent": 0.25},
        capacity={"running": 850.0, "floor": 1700.0},
        slo={"held": 9.0, "missed": 1.0, "alarm": 0.0, "slower": 1.5, "held_ratio": 0.9},
        tenants=traffic.by_tenant(),
        guard_report=lambda: GUARDED,
        demanded=lambda: {"large": Asked(accuracy=90.0, rows_per_s=1.5, rows=9, waiting=2, refused=3)},
        observe=lambda: {"queue_rows": 5.0, "accuracy_served": 85.5, "workers": 2.0},
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
    chain: Any = SimpleNamespace(last=reading, counts={}, failures={}, errors={}, live={})
    found = scrape(Metrics(families=dict, account=account, chain=chain, http=HttpStats, decisions=dict, turned=dict))
    grams = {key: value for key, value in found.items() if "carbon_grams_total" in key[0]}
    ways_of_grams = {dict(labels)["method"] for _, labels in grams}
    assert ways_of_grams == {known, "modelled"}
    assert all(dict(labels)["intensity"] == method for _, labels in grams)
    for name in ("clover_carbon_grams_total", "clover_line_carbon_grams_total"):
        assert sum(value for (key, _), value in grams.items() if key == name) == pytest.approx(20.0)
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
    chain: Any = SimpleNamespace(
        last=reading, counts={"fresh": 3, "stale": 0}, failures={"static": 0}, errors={}, live={}
    )
    http = HttpStats()
    for _ in range(3):
        http.answered(200)
    http.open_connections = 2
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
    assert value("clover_cache_lookup_seconds_total", model="m") == 2
    assert value("clover_requests_total", model="m", code="200") == 3
    assert value("clover_requests_total", model="m", code="429") == 1
    assert value("clover_overload_requests_total", model="m", why="late") == 1
    assert value("clover_rows_total", model="m", variant="large") == 8
    assert value("clover_queue_rows", model="m") == 5
    assert value("clover_accuracy_served", model="m") == 85.5
    assert value("clover_route_share", model="m", variant="large") == 0.75
    assert value("clover_target", model="m", target="slo_ms") == 20
    assert value("clover_slo_held_ratio", model="m") == 0.9
    assert value("clover_slo_windows_total", model="m", slo="held") == 9
    assert value("clover_slo_windows_total", model="m", slo="missed") == 1
    assert value("clover_slo_alarm", model="m") == 0
    assert value("clover_slo_slower", model="m") == 1.5
    assert value("clover_front_end_seconds", model="m") == 0.002
    assert value("clover_swaps_total", model="m") == 4
    assert value("clover_repartitions_total", model="m") == 1
    assert value("clover_worker_restarts_total", model="m") == 2
    assert value("clover_workers_missing", model="m") == 1
    assert value("clover_workers_given_up_total", model="m") == 3
    assert value("clover_worker_log_dropped_lines_total", model="m") == 7
    assert value("clover_worker_log_dropped_bytes_total", model="m") == 700
    assert value("clover_poison_total", model="m") == 1
    assert value("clover_ready", model="m") == 1
    assert value("clover_batch_size_bucket", model="m", le="4") == 1
    assert value("clover_batch_size_bucket", model="m", le="8") == 2
    assert value("clover_batch_size_sum", model="m") == 11
    assert value("clover_request_seconds_bucket", model="m", le="0.005") == 2
    assert value("clover_request_seconds_bucket", model="m", le="+Inf") == 3
    assert value("clover_request_seconds_count", model="m") == 3
    assert value("clover_queue_seconds_count", model="m") == 3
    energy = {"model": "m", "variant": "small", "method": "measured"}
    assert value("clover_energy_joules_total", part="active", **energy) == 8
    assert value("clover_energy_joules_total", part="idle", **energy) == 2
    stated = energy | {"method": "modelled", "intensity": "configured"}
    assert value("clover_carbon_grams_total", part="active", **stated) == 8 / 3.6e6 * 300
    assert value("clover_device_joules_total", device="cpu0", method="measured") == 10
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
    assert value("clover_carbon_readings_total", state="fresh") == 3
    assert value("clover_decisions_total", action="applied") == 2
    assert value("clover_reconfigurations_total", model="toy") == 3
    assert value("clover_thresholds_moved_total", model="toy") == 5
    assert value("clover_accuracy_budget_points", model="m", part="spent") == 0.25
    assert value("clover_capacity_rows_per_second", model="m", of="floor") == 1700.0
    assert value("clover_profile_correction", model="m", variant="small", profile="1c", kind="time") == 1.5
    assert value("clover_profile_correction", model="m", variant="small", profile="1c", kind="energy") == 0.9
    assert value("clover_http_connections") == 2
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
    chain: Any = SimpleNamespace(last=None, counts={}, failures={}, errors={}, live={})
    found = scrape(Metrics(families=dict, account=account, chain=chain))

    def value(name: str, device: str, method: str, **labels: str) -> float | None:
        return found.get((name, tuple(sorted({"device": device, "method": method, **labels}.items()))))

    assert value("clover_device_joules_total", "gpu0", "measured") == 100
    assert value("clover_device_joules_total", "gpu1", "emulated") == 50
    assert value("clover_device_joules_total", "gpu1", "measured") is None
    assert value("clover_device_watts", "gpu0", "measured") == 100
    assert value("clover_device_watts", "gpu1", "emulated") is None  # not metered now
    assert value("clover_device_idle_watts", "gpu1", "emulated") == 70
    assert value("clover_device_metered", "gpu0", "measured") == 1
    assert value("clover_device_metered", "gpu1", "emulated") == 0
    assert value("clover_meter_restarts_total", "gpu0", "measured") == 1
    assert value("clover_carried_joules", "gpu1", "emulated") == -20
    for device, method, total_j in (("gpu0", "measured", 100), ("gpu1", "emulated", 50)):
        place = f"{device}:3g.20gb@0"
        parts = [value("clover_placement_joules_total", device, method, placement=place, part=p) for p in PARTS]
        parts += [value("clover_unattributed_joules_total", device, method, part=part) for part in PARTS]
        parts += [value("clover_carried_joules", device, method)]
        assert sum(part for part in parts if part is not None) == pytest.approx(total_j)
        assert value("clover_unattributed_joules_total", device, method, part="idle") == pytest.approx(40)


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
    chain: Any = SimpleNamespace(last=None, counts={}, failures={}, errors={}, live={})
    found = scrape(Metrics(families=dict, account=account, chain=chain))
    labels = (("device", "gpu0"), ("method", "measured"))
    assert found["clover_device_awake_watts", labels] == 35
    assert found["clover_device_shared_seconds_total", labels] == 2
    lines = {line: found["clover_line_joules_total", (labels[0], ("line", line), labels[1])] for line in SUMMED}
    assert lines == {"idle_no_request": 150, "awake": pytest.approx(105), "unattributed": pytest.approx(45)}
    assert sum(lines.values()) == pytest.approx(found["clover_device_joules_total", labels])


def test_savings_have_counters_of_both_sides_and_may_be_negative() -> None:
    rows = [
        Compared(
            *("m", kind, "modelled"),
            served_j=10.0,
            shadow_j=8.0,
            served_g=5.0,
            shadow_g=4.0,
            points=-0.25,
            grid="synthetic",
            estimates=(("likely", -1.0), ("low", -3.0)),
        )
        for kind in ("base", "matched")
    ]
    chain: Any = SimpleNamespace(last=None, counts={}, failures={}, errors={}, live={})
    found = scrape(Metrics(families=dict, account=Account(pue=1.0), chain=chain, compared=lambda: rows))

    def value(name: str, **labels: str) -> float | None:
        return found.get((name, tuple(sorted({"model": "m", "method": "modelled", **labels}.items()))))

    for kind in ("base", "matched"):
        assert value("clover_saved_carbon_grams", against=kind) == -1
        assert value("clover_accuracy_given_up_points", against=kind) == -0.25
        labels = {"against": kind, "grid": "synthetic"}
        name = "clover_saved_carbon_estimate_grams"
        assert value(name, estimate="likely", **labels) == -1
        assert value(name, estimate="low", **labels) == -3
        counted = kind != "matched"  # it is another mix with every row, and a counter never falls
        for side, joules, grams in (("served", 10, 5), ("shadow", 8, 4)):
            labels = {"against": kind, "side": side}
            energy = value("clover_counterfactual_energy_joules_total", **labels)
            carbon = value("clover_counterfactual_carbon_grams_total", **labels)
            assert (energy, carbon) == ((joules, grams) if counted else (None, None))


def test_help_says_within_what_and_on_what_grid_savings_are_and_that_metered_joules_may_be_modelled() -> None:
    known = {spec.name: spec.help for spec in COMPARED} | {spec.name: spec.help for spec in ENERGY}
    for what in ("counterfactual_energy_joules", "counterfactual_carbon_grams", "saved_carbon_grams"):
        name = f"clover_{what}"
        assert "within the boundary server" in known[name]
        assert ("(grid), which may be invented" in known[name]) == ("grams" in name)
    for name in ("clover_joules_per_row", "clover_device_joules"):
        assert "method" in known[name]
        assert "model" in known[name]


def test_an_idle_server_can_be_scraped() -> None:
    chain: Any = SimpleNamespace(last=None, counts={}, failures={}, errors={}, live={})
    idle = source()
    idle.traffic = Traffic(["small", "large"])
    idle.observe = dict
    found = scrape(Metrics(families=lambda: {"m": idle}, account=Account(pue=1.0), chain=chain))
    assert found["clover_batch_size_count", (("model", "m"),)] == 0
    assert found["clover_batch_size_bucket", (("le", "1"), ("model", "m"))] == 0


def test_what_watches_over_answers_is_told() -> None:
    chain: Any = SimpleNamespace(last=None, counts={}, failures={}, errors={}, live={})
    found = scrape(Metrics(families=lambda: {"m": source()}, account=Account(pue=1.0), chain=chain))
    model = ("model", "m")
    small = (model, ("variant", "small"))
    assert found["clover_guard_state", (model,)] == 1.0
    assert found["clover_guard_alarms_total", (model,)] == 2.0
    assert found["clover_guard_inputs_total", (("input", "new"), model)] == 900.0
    assert found["clover_guard_inputs_total", (("input", "repeat"), model)] == 70.0
    assert found["clover_guard_returns_total", (model,)] == 1.0
    assert found["clover_guard_pattern", (model, ("pattern", "client"))] == 1.0
    assert found["clover_guard_pattern", (model, ("pattern", "drift"))] == 0.0
    assert found["clover_guard_statistic", (("kind", "own"), *small)] == 0.5
    assert found["clover_agreement", (("kind", "own"), model, ("part", "seen"), small[1])] == 0.9
    assert found["clover_audits_total", (model, ("outcome", "full"))] == 3.0
    assert found["clover_audit_joules_total", (("method", "modelled"), model)] == 1.5
    assert found["clover_audit_lowest_share", (model,)] == 0.001
    assert found["clover_accuracy_feedback", (model, ("part", "low"))] == 80.0
    assert found["clover_feedback_rows_total", small] == 50.0
    assert found["clover_feedback_refused_total", (model, ("reason", "limited"))] == 7.0
    assert found["clover_feedback_largest_share", (model,)] == 0.75


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
        lines |= {"awake_g": 0.0, "idle_no_request_g": 0.0}
        models = {"m": (100, {"carbon_g": 10.0}), "g": (1, {"carbon_g": 0.0})}
        report = sci({"cpu0": {**lines, "method": "measured"}}, models, ledger, intensities={"synthetic"}, pue=1.5)
        chain: Any = SimpleNamespace(last=None, counts={}, failures={}, errors={}, live={})
        return scrape(Metrics(families=dict, account=Account(pue=1.0), chain=chain, sci=lambda: report))

    found = scraped(box)
    assert found["clover_embodied_carbon_grams_total", (("device", "cpu0"), ("method", "configured"))] == 250_000
    assert found["clover_model_embodied_carbon_grams_total", (("method", "configured"), ("model", "m"))] == 125_000
    ways = {"embodied": "configured", "energy": "measured", "grams_method": "modelled", "intensity": "synthetic"}
    known = tuple(ways.items())
    assert found["clover_sci_grams_per_row", (("boundary", "server"), *known)] == 250_010 / 101
    model = (("boundary", "workers"), *known, ("model", "m"))
    assert found["clover_sci_model_grams_per_row", model] == (10 + 125_000) / 100
    found = scraped(box, unknown)
    names = {(name, dict(labels).get("device") or dict(labels).get("model")) for name, labels in found}
    assert ("clover_embodied_carbon_grams_total", "gpu0") not in names
    assert ("clover_model_embodied_carbon_grams_total", "g") not in names
    assert not [name for name in found if name[0] == "clover_sci_grams_per_row"]


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
    model.traffic.of("acme").count(429)
    model.traffic.of("acme").limited = 1
    model.traffic.answered_to(0, ["acme"] * 2)
    model.tenants = model.traffic.by_tenant()
    chain: Any = SimpleNamespace(last=reading, counts={}, failures={}, errors={}, live={})
    found = scrape(Metrics(families=lambda: {"m": model}, account=account, chain=chain))

    def of(name: str, **labels: str) -> dict[tuple[str, ...], float]:
        """Return the samples by tenant and the labels that are not given."""
        picked = {}
        for (metric, pairs), value in found.items():
            own = dict(pairs)
            if metric == name and labels.items() <= own.items():
                picked[tuple(own[key] for key in sorted(own) if key not in labels)] = value
        return picked

    assert of("clover_tenant_requests_total", model="m") == {("200", ""): 3, ("429", "acme"): 1}
    assert of("clover_tenant_limited_requests_total", model="m") == {("acme",): 1}
    assert of("clover_tenant_rows_total", model="m", variant="small") == {("",): 1, ("acme",): 2}
    assert of("clover_tenant_energy_joules_total", method="measured") == {
        ("m", "", "small"): pytest.approx(2.5),
        ("m", "acme", "small"): pytest.approx(7.5),
    }
    assert sum(of("clover_tenant_carbon_grams_total", intensity="published").values()) == pytest.approx(10.0)
    rows = of("clover_tenant_rows_total")
    assert sum(rows.values()) == sum(of("clover_rows_total").values())


def test_without_tenants_there_are_no_samples_of_any() -> None:
    chain: Any = SimpleNamespace(last=None, counts={}, failures={}, errors={}, live={})
    found = scrape(Metrics(families=lambda: {"m": source()}, account=Account(pue=1.0), chain=chain))
    assert not [name for name, _ in found if name.startswith("clover_tenant")]


def test_gpus_that_may_be_parked_say_whether_they_are_and_what_that_spared() -> None:
    chain: Any = SimpleNamespace(last=None, counts={}, failures={}, errors={}, live={})
    parked = {"gpu0": ParkedTime(), "gpu1": ParkedTime(since_s=5.0, seconds=10.0, spared_j={"modelled": 350.0})}
    found = scrape(Metrics(families=dict, account=Account(pue=1.0), chain=chain, parked=lambda: parked))
    assert found["clover_device_parked", (("device", "gpu0"),)] == 0.0
    assert found["clover_device_parked", (("device", "gpu1"),)] == 1.0
    assert found["clover_device_parked_seconds_total", (("device", "gpu1"),)] == 10.0
    labels = (("device", "gpu1"), ("method", "modelled"))
    assert found["clover_device_parked_spared_joules_total", labels] == 350.0


def test_the_ledger_says_whether_it_is_written_and_what_it_has_of_all_runs() -> None:
    chain: Any = SimpleNamespace(last=None, counts={}, failures={}, errors={}, live={})
    kept: list[LedgerStatus | None] = [None]
    metrics = Metrics(families=dict, account=Account(pue=1.0), chain=chain, ledger=lambda: kept[0])
    assert not any(name.startswith("clover_ledger") for name, _ in scrape(metrics))
    status = LedgerStatus(
        Path("a.db"), state="failing", written_rows=5, dropped_rows=2, grams=7.0, saved_g={("m", "base"): 3.0}
    )
    status.failures["full"] = 4
    kept[0] = status
    found = {name: value for (name, labels), value in scrape(metrics).items() if not labels}
    assert (found["clover_ledger_up"], found["clover_ledger_written_rows_total"]) == (0.0, 5.0)
    assert (found["clover_ledger_dropped_rows_total"], found["clover_ledger_carbon_grams"]) == (2.0, 7.0)
    assert "clover_ledger_age_seconds" not in found
    every = scrape(metrics)
    assert every["clover_ledger_failures_total", (("reason", "full"),)] == 4.0
    assert every["clover_ledger_saved_carbon_grams", (("against", "base"), ("model", "m"))] == 3.0
    status.state, status.written_s = "writing", 1.0
    found = {name: value for (name, labels), value in scrape(metrics).items() if not labels}
    assert found["clover_ledger_up"] == 1.0
    assert found["clover_ledger_age_seconds"] > 0.0
