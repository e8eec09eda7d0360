"""What a server counted so far of one model, as the state and the embedding API show it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from clover.accounting import Account
from clover.accounting.sci import SciReport
from clover.control.baselines.saved import Devices, saved_by_all
from clover.control.baselines.shadow import Shadow
from clover.runtime.served import Served


def model_totals(served: Served, account: Account, sci: SciReport, *, tenants: bool) -> dict[str, Any]:
    """Return joules, grams, rows, requests and workers of a model; `tenants`: whether what each sent is among it."""
    name, traffic = served.name, served.traffic
    return {
        "state": served.state,
        **account.totals(name),
        "sci": sci.model_json(name),
        "receipts_j": account.receipts_j.get(name, 0.0),
        "joules_per_row": {
            variant: {"predicted": predicted_j, "metered": metered_j, "method": method}
            for (family, variant, method), (predicted_j, metered_j) in account.per_row().items()
            if family == name
        },
        "rows": dict(zip(traffic.variants, traffic.rows, strict=True)),
        **({"tenants": served.tenants_json()} if tenants else {}),
        "requests": {str(code): count for code, count in sorted(traffic.codes.items())},
        "accuracy_served": served.observe().get("accuracy_served"),
        "accuracy_by_labels": served.router.feedback.estimate(),
        "audit_j": served.router.audits.energy_j,
        "swaps": served.swaps,
        "repartitions": served.repartitions,
        "restarts": served.restarts,
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
