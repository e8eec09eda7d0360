"""What a server counted so far, as the state and the embedding API show it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from clover.accounting import Account
from clover.accounting.sci import SciReport
from clover.control.baselines.saved import Devices, saved_by_all
from clover.control.baselines.shadow import Shadow
from clover.control.controller import Controller
from clover.runtime.served import Served
from clover.server.cluster_follower import ClusterFollower
from clover.server.families import ServedFamilies
from clover.server.footprint import Footprint
from clover.server.ledger import ServerLedger
from clover.server.machine import Machine
from clover.server.rollouts import RollOuts
from clover.server.sleeper import Sleeper
from clover.tenants import Tenants
from clover.waiting.runner import BatchRunner


class ServerTotals:
    """Reads what the parts of a server counted."""

    def __init__(
        self,
        account: Account,
        footprint: Footprint,
        machine: Machine,
        families: ServedFamilies,
        tenants: Tenants,
        controller: Controller,
        ledger: ServerLedger | None,
        rollouts: RollOuts,
        cluster: ClusterFollower,
        sleeper: Sleeper,
        waiting: BatchRunner,
    ) -> None:
        self._waiting = waiting
        self._sleeper = sleeper
        self._account = account
        self._footprint = footprint
        self._machine = machine
        self._families = families
        self._tenants = tenants
        self._controller = controller
        self._ledger = ledger
        self._rollouts = rollouts
        self._cluster = cluster

    def report(self) -> dict[str, Any]:
        """Return joules and grams by model and device, rows and workers, ready for JSON."""
        account, machine, tenants = self._account, self._machine, self._tenants
        sci = self._footprint.report()
        models = {
            name: model_totals(served, account, sci, tenants=bool(tenants))
            for name, served in self._families.served.items()
        }
        for name, slept in self._sleeper.report().items():
            models[name]["sleep"] = slept
        for name, waited in self._waiting.waited.items():
            if name in models:
                models[name]["waited"] = dataclasses.asdict(waited)
        devices = {name: {**line, **machine.about(name)} for name, line in account.devices().items()}
        return {
            "pue": account.pue,
            "saved": saved_by_all(self._controller.shadows.by_family.values(), devices),
            "sci": sci.as_json(),
            "models": models,
            **({"tenants": tenants.as_json()} if tenants else {}),
            "devices": devices,
            "core_idle": machine.idle_states(),
            "ledger": self._ledger.report() if self._ledger is not None else None,
            "rollouts": self._rollouts.report(),
            "cluster": self._cluster.report(),
            "sandbox": machine.sandbox(),
            "waiting": self._waiting.state(),
        }


def model_totals(served: Served, account: Account, sci: SciReport, *, tenants: bool) -> dict[str, Any]:
    """Return joules, grams, rows, requests and workers of a model; `tenants`: whether what each sent is among it."""
    name, traffic, unmeasured = served.name, served.traffic, served.router.admission.unmeasured
    return {
        "state": served.state,
        "profile": served.profile.base.method if served.profile is not None else "none",
        "unmeasured": served.unmeasured,
        **account.totals(name),
        "sci": sci.model_json(name),
        "joules_per_row": {
            variant: {"predicted": predicted_j, "metered": metered_j, "method": method}
            for (family, variant, method), (predicted_j, metered_j) in account.per_row().items()
            if family == name
        },
        "rows": dict(zip(traffic.variants, traffic.rows, strict=True)),
        **({"tenants": served.tenants_json()} if tenants else {}),
        "requests": {str(code): count for code, count in sorted(traffic.codes.items())},
        "accuracy_served": None if unmeasured else served.fleet.observe().get("accuracy_served"),
        "accuracy_by_labels": served.router.feedback.estimate(),
        "audit_j": served.router.audits.energy_j,
        "swaps": served.fleet.swaps,
        "repartitions": served.fleet.repartitions,
        "restarts": served.fleet.restarts,
        "workers": served.fleet.describe(),
        "events": list(served.fleet.events),
    }


def closing_words(shadows: Iterable[Shadow], devices: Devices, idle: Mapping[str, Any] | None) -> list[str]:
    """Return the last lines of the log: what was saved, a line for each alternative that it is compared with, and what
    was `idle`; or that alone, if there was too little load to save on."""
    if idle and idle["light"]:
        return [idle["words"]]
    saved = saved_by_all(shadows, devices) or {}
    found = [item["words"] for item in saved.values() if isinstance(item, dict)]
    return [f"since the start: {words}" for words in (*found, *([idle["words"]] if idle else []))]
