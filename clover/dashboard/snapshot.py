"""The messages to the page, made of the server's state: what it shows and no more.  Pure.

The state (`clover.control.report`) is for programs and has 20 KB for one family.  A message has a quarter of that, so
that dozens of open pages cost little.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from clover.accounting.boundaries import DEFAULT, WITHIN
from clover.control.state.counted import why_apart
from clover.control.wording import (
    comparisons,
    judged_accuracy,
    pin_words,
    served_accuracy,
    summarize_saving,
    troubles,
    verdict,
)
from clover.dashboard.history import Sample, tidy
from clover.types import Decision, Reading, words_of

_EVENTS = 6
_FORECAST_S = 48 * 3600.0
_FORECAST_POINTS = 100
State = Mapping[str, Any]
Latencies = Mapping[str, Sequence[float | None]]
"""p50, p95 and p99 (milliseconds) by model; None without an answer."""


def overview(state: State, latencies: Latencies, grams_per_hour: float | None) -> dict[str, Any]:
    """Return what the page shows of the present."""
    totals = state.get("totals") or {}
    counted = totals.get("models") or {}
    names = dict.fromkeys((*state["models"], *counted))
    return {
        "mode": state["mode"],
        "policy": state["policy"],
        "frozen": state["frozen"],
        "grid_s": state["grid_s"],
        "troubles": list(troubles(state)),
        "verdict": verdict(state),
        "carbon": _carbon(state.get("intensity")),
        "emission": _emission(totals, grams_per_hour),
        "saved": _saved(totals.get("saved")),
        "idle": (state.get("idle") or {}).get("words", ""),
        "light": (state.get("idle") or {}).get("light", False),
        "devices": [_device(item, (totals.get("devices") or {}).get(item["device"])) for item in state["devices"]],
        "models": {
            name: _model(state["models"].get(name) or {}, counted.get(name) or {}, latencies.get(name))
            for name in names
        },
    }


def sample(at_s: float, shown: Mapping[str, Any]) -> Sample:
    """Return the figures of an overview that charts show over time."""
    emission = shown["emission"]
    sampled: Sample = {
        "at": round(at_s, 1),
        "grid_s": round(shown["grid_s"], 1),
        "g_per_kwh": tidy((shown["carbon"] or {}).get("g_per_kwh")),
        "watts": tidy(emission["watts"]),
        "grams_per_hour": tidy(emission["grams_per_hour"]),
    }
    for name, model in shown["models"].items():
        p50, p95, p99 = model["latency_ms"]
        figures = {
            "p50": p50,
            "p95": p95,
            "p99": p99,
            "slo": model["slo_ms"],
            "rate": model["arrival_rate"],
            "served": model["served_rate"],
            "queue": model["queue_rows"],
            "accuracy": model["accuracy"],
            "labels": model["accuracy_by_labels"],
            "floor": model["accuracy_floor"],
            "target": (model["budget"] or {}).get("target"),
        }
        sampled |= {f"{name}.{key}": tidy(value) for key, value in figures.items()}
    return sampled


def decision(record: Decision) -> dict[str, Any]:
    """Return a decision in brief, with its plan's reason."""
    plan = record.plan
    return {
        "id": record.id,
        "at": record.at,
        "last_at": record.last_at,
        "count": record.count,
        "model": record.family,
        "trigger": record.trigger,
        "action": record.action,
        "detail": record.detail,
        "operator": record.operator,
        "seconds": tidy(record.seconds),
        "g_per_kwh": tidy(record.inputs.get("intensity_g_per_kwh")),
        "reason": plan.reason if plan is not None else "",
        "runs": words_of(plan.configuration) if plan is not None else "",
    }


def forecast(readings: Sequence[Reading], hours: Sequence[tuple[float, float]], now_s: float) -> dict[str, Any]:
    """Return the intensity's hours of the past day as (grid time, gCO2e/kWh), and what its source foresees of the next
    two."""
    ahead = [
        (round(reading.at_s), tidy(reading.g_per_kwh))
        for reading in readings
        if reading.at_s + reading.step_s > now_s and reading.at_s < now_s + _FORECAST_S
    ]
    ahead = ahead[:: math.ceil(len(ahead) / _FORECAST_POINTS) or 1]
    return {"past": [(round(at_s), tidy(value)) for at_s, value in hours if math.isfinite(value)], "ahead": ahead}


def _carbon(intensity: State | None) -> dict[str, Any] | None:
    if intensity is None:
        return None
    keys = ("provider", "zone", "signal", "scope", "method", "replayed", "state", "label", "trouble")
    return {
        "g_per_kwh": tidy(intensity["g_per_kwh"]),
        "age_s": round(intensity["age_s"]),
        **{key: intensity[key] for key in keys},
    }


def _emission(totals: State, grams_per_hour: float | None) -> dict[str, Any]:
    """Return what is drawn now, and emitted and used since the start, within the boundary `server`."""
    # A device has no figures before its meter was read for the first time, while the server starts.
    devices = [line for line in (totals.get("devices") or {}).values() if "idle_w" in line]
    sci = totals.get("sci") or {}

    def since_the_start(unit: str) -> float | None:
        return tidy(sum(line[f"{name}_{unit}"] for line in devices for name in WITHIN[DEFAULT])) if devices else None

    methods = sorted({line["method"] for line in devices})
    grids = sorted({line["intensity"] for line in devices if line.get("intensity")})
    return {
        # While a meter gives no new reading its watts are not there, and so is no sum.
        "watts": tidy(sum(line["watts"] for line in devices))
        if devices and all("watts" in line for line in devices)
        else None,
        "idle_w": tidy(sum(line["idle_w"] for line in devices)) if devices else None,
        "grams_per_hour": tidy(grams_per_hour),
        "grams": since_the_start("g"),
        "embodied_g": tidy(sci.get("embodied_g")),
        "joules": since_the_start("j"),
        "energy": " + ".join(methods),
        "intensity": " + ".join(grids),
        "grams_method": (sci.get("methods") or {}).get("grams", ""),
        "pue": totals.get("pue"),
        "sci": sci.get("words", ""),
    }


def _saved(saved: State | None) -> dict[str, Any] | None:
    """Return each comparison: grams saved (negative: emitted more), their interval, against what, and in words."""
    if not saved:
        return None
    items = [
        {
            "kind": kind,
            "against": item.get("against", ""),
            "short": summarize_saving(item),
            "words": item["words"],
            "verified": item.get("verified", True),
            **{key: tidy(item.get(key)) for key in ("grams", "low", "high", "part", "accuracy_given_up")},
        }
        for kind, item in comparisons(saved).items()
    ]
    return {"since_s": saved["since_s"], "known": saved.get("known", ""), "rows": saved["rows"], "items": items}


def _device(item: State, line: State | None) -> dict[str, Any]:
    line = line if line is not None and "watts" in line else None
    keys = ("device", "kind", "label", "emulated", "slices", "lost", "family", "quarantined", "foreign")
    return {
        **{key: item[key] for key in keys},
        "parked": item.get("parked", False),
        "spared_w": tidy(item.get("spared_w")),
        "spared_method": item.get("spared_method", ""),
        "watts": tidy(line.get("watts")) if line else None,
        "idle_w": tidy(line["idle_w"]) if line else None,
        "method": line["method"] if line else "",
        "meter": line.get("meter", "") if line else "",
    }


def _model(model: State, totals: State, latency_ms: Sequence[float | None] | None) -> dict[str, Any]:
    observed, targets, plan = model.get("observed") or {}, model.get("targets") or {}, model.get("plan") or {}
    predicted, routing, budget = plan.get("prediction") or {}, model.get("routing") or {}, model.get("budget")
    slo, guard = model.get("slo") or {}, model.get("guard") or {}
    labels = totals.get("accuracy_by_labels") or {}
    return {
        "state": totals.get("state", ""),
        "planned": bool(model),
        "mode": model.get("mode", ""),
        "frozen": model.get("frozen", False),
        "pin": pin_words(model.get("pin")),
        "slo_ms": tidy(targets.get("slo_ms")),
        "slo_source": targets.get("slo_source", ""),
        "slo_words": slo.get("words", ""),
        "held_ratio": tidy(slo.get("held_ratio")),
        "late": bool(slo.get("late")),
        "alarm": slo.get("alarm"),
        "accuracy_floor": tidy(targets.get("accuracy_floor")),
        "budget": None
        if budget is None
        else {
            "points": budget["accuracy_budget"],
            "target": tidy(budget["accuracy_target"]),
            "accuracy": tidy(budget.get("accuracy")),
            "rows": budget.get("rows"),
            "since_s": budget.get("since_s"),
        },
        "accuracy": tidy(served_accuracy(model, totals)),
        "accuracy_judged": tidy(judged_accuracy(model, totals)),
        "accuracy_apart": why_apart(observed),
        "accuracy_by_labels": tidy(labels.get("accuracy")),
        "labelled_rows": labels.get("rows", 0),
        "latency_ms": [tidy(value) for value in latency_ms or (None, None, None)],
        "p95_ms": tidy(observed.get("p95_ms")),
        "arrival_rate": tidy(observed.get("arrival_rate")),
        "served_rate": tidy(observed.get("served_rate")),
        "queue_rows": tidy(observed.get("queue_rows")),
        "in_flight_rows": tidy(observed.get("in_flight_rows")),
        "rows": totals.get("rows", {}),
        "requests": totals.get("requests", {}),
        "grams": tidy(totals.get("carbon_g")),
        "restarts": totals.get("restarts", 0),
        "chain": routing.get("chain", []),
        "thresholds": [tidy(value) for value in routing.get("thresholds", ())],
        "shares": {name: tidy(value) for name, value in (routing.get("shares") or {}).items()},
        "predicted": {key: tidy(predicted.get(key)) for key in ("p95_ms", "accuracy", "energy_j_per_row")},
        "reason": plan.get("reason", ""),
        "reference": tidy(targets.get("reference_g_per_kwh")),
        "reference_from": targets.get("reference_from", ""),
        "objective": targets.get("objective", ""),
        "terms": model.get("terms") or "",
        "guard": guard.get("state", ""),
        "guard_why": guard.get("why", ""),
        "transition": model.get("transition"),
        "verifying": model.get("verifying", False),
        "advice": (model.get("profile_correction") or {}).get("advice", ""),
        "workers": [_worker(worker) for worker in totals.get("workers", ())],
        "events": list(totals.get("events", ()))[-_EVENTS:],
    }


def _worker(worker: State) -> dict[str, Any]:
    keys = ("placement", "device", "profile", "start", "size", "variant", "backend", "pid", "state", "routed")
    variants = list(worker.get("variants") or [worker["variant"]])
    return {**{key: worker[key] for key in (*keys, "restarts", "rows", "busy_s")}, "variants": variants}
