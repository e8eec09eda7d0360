"""Reads what a running server has counted, in the form of its ledger (`clover.telemetry.ledger.snapshot`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime

import msgspec

from clover._native.histogram import Histogram
from clover.accounting import Account
from clover.accounting.boundaries import DEFAULT
from clover.accounting.devices import IDLE
from clover.accounting.labels import methods_of
from clover.control.baselines.saved import KINDS, Devices, meter_error, sums_of
from clover.control.controller import Controller
from clover.http.audit import AuditLog, AuditRecord
from clover.runtime.served import Served
from clover.server.machine import Machine
from clover.telemetry.ledger.latency import BOUNDS_MS
from clover.telemetry.ledger.rows import EventKind, EventRow, Known
from clover.telemetry.ledger.snapshot import (
    Amount,
    CellCounts,
    CellKey,
    ComparedCounts,
    GridMoment,
    ModelCounts,
    Snapshot,
)
from clover.types import Decision, Reading, words_of
from clover.waiting.runner import Waited

AGAINST = {"matched": "fixed", "base": "base"}
"""What the ledger calls the counterfactuals."""
_BOUNDS_NS = [bound * 1e6 for bound in BOUNDS_MS]
_DETAIL_BYTES = 16_384
"""Largest detail of an event; of a larger one the inputs are left out."""
_KINDS: Mapping[str, EventKind] = {
    "applied": "transition",
    "rolled back": "transition",
    "failed": "fault",
    "fault": "fault",
}


def known_as(reading: Reading) -> Known:
    """Return how an intensity is known, in the ledger's words."""
    if reading.replayed:
        return "replayed"
    if reading.method == "synthetic":
        return "synthetic"
    if reading.method == "configured" or reading.state == "configured":
        return "configured"
    # The value of a later source that is older than its step stands in, as a stale one of the first does.
    late = reading.state == "fallback" and reading.age_s > reading.step_s
    if late or reading.state in ("stale", "forecast", "seasonal"):
        return "bridged"
    if reading.estimated or reading.method in ("estimated", "forecast"):
        return "estimated"
    return "unknown" if reading.method == "unknown" else "live"


class LedgerSource:
    """Reads account, models, shadows and decisions of a server."""

    def __init__(
        self,
        account: Account,
        machine: Machine,
        served: Mapping[str, Served],
        controller: Controller,
        audit: AuditLog | None = None,
        waited: Mapping[str, Waited] = {},
    ) -> None:
        self._waited = waited
        self._account = account
        self._machine = machine
        self._served = served
        self._controller = controller
        self._audit = audit if audit is not None else AuditLog()
        self._errors_g: dict[tuple[str, str], tuple[float, float]] = {}
        self._latency: dict[str, tuple[Histogram, int]] = {}
        """By model: latencies as they were, and answers until then that took longer than the SLO of their time."""
        self._decision = 0
        self._grid: tuple[str, ...] = ()
        self._fleet_ns: dict[str, int] = {}

    def forget(self, model: str) -> None:
        """Forget the latencies of a model that is gone."""
        self._latency.pop(model, None)

    # --- figures ------------------------------------------------------------------------------------------------------

    def moment(self, reading: Reading, at_s: float, mono_s: float) -> GridMoment:
        """Return the intensity in force, and what meters have shown in all."""
        joules = grams = 0
        for _, _, _, line in self._account.lines():
            joules += round(line.joules * 1e6)  # each by itself, as the lines of the ledger are
            grams += round(line.grams * 1e9)
        key = (reading.zone, reading.provider, reading.signal, reading.scope, known_as(reading))
        return GridMoment(at_s, mono_s, key, reading.g_per_kwh, reading.age_s, joules, grams)

    def snapshot(self, at_s: float, mono_s: float) -> Snapshot:
        """Return all other figures."""
        account = self._account
        metered_s = {name: ns / 1e9 for name, ns in self._machine.metered_ns().items()}
        if account.host_device in metered_s:
            metered_s[""] = metered_s[account.host_device]
        return Snapshot(
            at_s,
            mono_s,
            lines={
                (device, line): (method, Amount(sums.joules, sums.grams))
                for device, line, method, sums in account.lines()
                if sums.joules or sums.grams
            },
            cells={
                CellKey(key.family, key.variant, key.device, _slice(key.device, key.placement), key.tenant): CellCounts(
                    usage.rows,
                    {method: Amount(line.joules, line.grams) for method, line in usage.energy.items()},
                )
                for key, usage in account.usage.items()
            },
            idle={key: Amount(idle.joules, idle.grams) for key, idle in account.by_variant(*IDLE).items()},
            overheads={
                (family, line, method): Amount(booked.joules, booked.grams)
                for line in ("front_end", "control")
                for (family, _, method), booked in account.by_variant(line).items()
            },
            requests={
                (name, tenant): totals.requests
                for name, model in self._served.items()
                for tenant, totals in model.traffic.by_tenant().items()
            },
            models={name: self._model(name, model) for name, model in self._served.items()},
            compared=self._compare(),
            metered_s=metered_s,
        )

    def _model(self, name: str, model: Served) -> ModelCounts:
        traffic, feedback = model.traffic, model.router.feedback
        slo_ms = model.targets.get("slo_ms", 0.0)
        before, violations = self._latency.get(name) or (Histogram(), 0)
        if slo_ms > 0.0:
            violations += _later(traffic.latency, slo_ms) - _later(before, slo_ms)
        self._latency[name] = traffic.latency.copy(), violations
        family = self._controller.context.families.get(name)
        windows = family.slo.windows if family is not None else None
        return ModelCounts(
            receipts_j={who: joules for (model, who), joules in self._account.receipts_j.items() if model == name},
            rows=sum(traffic.rows),
            accuracy_rows=traffic.accuracy_rows,
            labelled=sum(feedback.labelled),
            right=sum(feedback.right),
            slo_ms=slo_ms,
            answered=traffic.latency.count,
            violations=violations,
            held=windows.held if windows is not None else 0,
            missed=windows.missed if windows is not None else 0,
            latency=traffic.latency.buckets(_BOUNDS_NS),
        )

    def _compare(self) -> dict[tuple[str, str, str], ComparedCounts]:
        counts: dict[tuple[str, str, str], ComparedCounts] = {}
        devices: Devices = self._account.devices()
        for model, shadow in self._controller.shadows.by_family.items():
            methods = methods_of(devices.values()).union(shadow.methods)
            meter_off = meter_error(methods, devices)
            for kind in KINDS:
                sums = sums_of(shadow, kind)
                counts[model, DEFAULT, AGAINST[kind]] = ComparedCounts(
                    label="emulated" if "emulated" in methods else "modelled",
                    rows=sums.rows,
                    own=Amount(*sums.served.tolist()),
                    shadow=Amount(*sums.shadow.tolist()),
                    own_right=float(sums.right),
                    shadow_right=float(sums.shadow_right),
                    error_g=self._counted_error((model, kind), sums.errors(shadow.off, meter_off).total),
                )
        for model, waited in self._waited.items():
            methods = methods_of(devices.values())
            counts[model, DEFAULT, "at once"] = ComparedCounts(
                label="emulated" if "emulated" in methods else "modelled",
                rows=waited.rows,
                own=Amount(waited.joules, waited.grams),
                shadow=Amount(waited.joules, waited.at_once_g),
                own_right=waited.accuracy_rows,
                shadow_right=waited.accuracy_rows,
                error_g=self._counted_error(
                    (model, "at once"), meter_error(methods, devices) * abs(waited.at_once_g - waited.grams)
                ),
            )
        return counts

    def _counted_error(self, key: tuple[str, str], error_g: float) -> float:
        """Return `error_g`, of all since the start, as a sum that never falls: once BASE is verified less may be off of
        the minutes before, and what those have stays with them."""
        before_g, counted_g = self._errors_g.get(key, (0.0, 0.0))
        self._errors_g[key] = error_g, counted_g + max(error_g - before_g, 0.0)
        return self._errors_g[key][1]

    # --- what happened ------------------------------------------------------------------------------------------------

    def events(self, at_s: float, mono_s: float) -> Iterator[EventRow]:
        """Yield what happened since the last call: control calls, decisions, and what befell workers."""
        yield from map(_call_event, self._audit.take())
        for decision in self._controller.context.decisions.after(self._decision):
            self._decision = decision.id
            yield _decision_event(decision)
        for name, model in self._served.items():
            last_ns = self._fleet_ns.get(name, 0)
            for event in list(model.fleet.events):
                if event["at_ns"] > last_ns:
                    self._fleet_ns[name] = event["at_ns"]
                    moment_s = at_s - (mono_s - event["at_ns"] / 1e9)
                    what = f"worker of {event['variant']} on {event['at']} {event['what']}: {event['reason']}"
                    kind: EventKind = "transition" if event["what"] == "woken" else "fault"
                    yield EventRow(moment_s, kind, name, what, _json(event))

    def take_left_out(self) -> int:
        """Return how many control calls were left out since the last call, because too many waited."""
        left_out, self._audit.left_out = self._audit.left_out, 0
        return left_out

    def provider_event(self, reading: Reading, at_s: float) -> EventRow | None:
        """Return what to note if another source, or another state of it, is in force than at the last call."""
        now = (reading.provider, reading.zone, reading.state, reading.method)
        if now == self._grid:
            return None
        self._grid = now
        trouble = self._controller.context.grid.trouble
        text = f"{reading.provider} {reading.zone}: {reading.state}, {reading.method}".replace(" :", ":")
        detail = {"g_per_kwh": reading.g_per_kwh, "age_s": reading.age_s, "known": known_as(reading)}
        return EventRow(at_s, "provider", "", f"{text}{f' ({trouble})' if trouble else ''}", _json(detail))


def _later(histogram: Histogram, slo_ms: float) -> int:
    """Return how many latencies were longer than the SLO."""
    return histogram.count - histogram.buckets([slo_ms * 1e6])[0]


def _slice(device: str, placement: str) -> str:
    """Return the place of a worker on its device; that on another device by its whole name."""
    return placement.removeprefix(f"{device}:")


def _call_event(record: AuditRecord) -> EventRow:
    """Return a control call as an event."""
    what = f"{record.call} {record.model}".strip()
    outcome = "done" if record.status == 200 else f"{record.status}: {record.error}"
    detail = msgspec.json.encode(record).decode()
    summary = f"{what} by {record.who} ({record.door}): {outcome}"
    return EventRow(record.at, "control", record.model, summary[:500], detail)


def _decision_event(decision: Decision) -> EventRow:
    """Return a decision as an event."""
    plan = decision.plan
    detail = {
        "id": decision.id,
        "trigger": decision.trigger,
        "mode": decision.mode,
        "action": decision.action,
        "detail": decision.detail,
        "operator": decision.operator,
        "seconds": decision.seconds,
        "grid_s": decision.grid_s,
        "configuration": words_of(plan.configuration) if plan is not None else None,
        "shares": plan.routing.shares if plan is not None else None,
        "inputs": decision.inputs,
    }
    text = _json(detail)
    if len(text) > _DETAIL_BYTES:
        text = _json({**detail, "inputs": None, "detail": decision.detail[:1000]})
    kind = "operator" if decision.operator else _KINDS.get(decision.action, "decision")
    why = f": {decision.detail}" if decision.detail else ""
    summary = f"{decision.action}: {decision.trigger}{why}"[:500]
    return EventRow(datetime.fromisoformat(decision.at).timestamp(), kind, decision.family, summary, text)


def _json(found: Mapping[str, object]) -> str:
    return msgspec.json.encode(found).decode()
