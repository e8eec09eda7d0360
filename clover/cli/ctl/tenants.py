"""What each tenant may send, what it sent, and what that cost, for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from clover.hints import program
from clover.terminal import Column, filled, sheet, wrapped

_LIMITS = tuple(
    Column(head, right=at > 0)
    for at, head in enumerate(("tenant", "priority", "rows/s", "burst", "accuracy %", "deadline ms"))
)
_USED = tuple(
    Column(head, right=at > 0)
    for at, head in enumerate(("tenant", "requests", "refused", "over rate", "rows", "active J", "g CO2e"))
)


def show(answer: dict[str, Any], console: Console) -> None:
    """Print what the tenants of a server's state may send, and what they sent to all of its models."""
    totals = answer.get("totals") or {}
    configured = totals.get("tenants")
    if not configured:
        console.print(Text("no tenants are configured: the server's file has no [[tenant]]"))
        return
    models = [model.get("tenants", {}) for model in totals.get("models", {}).values()]
    names = sorted({*configured, *(name for model in models for name in model)})
    sent = {name: [model[name] for model in models if name in model] for name in names}
    limits = [_limits(name, configured[name]) for name in names if name in configured]
    console.print(sheet(_LIMITS, limits, filled(_LIMITS, limits)))
    console.print()
    console.print(sheet(_USED, [_used(name, sent[name]) for name in names], range(len(_USED))))
    every = [item for items in sent.values() for item in items]
    joules, grams = (" + ".join(sorted({item[key] for item in every} - {""})) for key in ("method", "grams_method"))
    known = f" Joules are {joules}, grams {grams}." if joules else ""
    bill = (
        f"active J, g CO2e: of computing a tenant's rows since this server started.{known} To bill, take the grams of "
        f"`{program()} report --by tenant`, which share out all that the machine emitted, idle power included."
    )
    console.print(Text("\n" + wrapped(bill, console.width)))


def _limits(name: str, limits: dict[str, Any]) -> list[str]:
    """Return what a tenant may send, as cells."""
    return [
        name,
        str(limits["priority"]),
        "no limit" if limits["rate"] is None else f"{limits['rate']:g}",
        "" if limits["burst"] is None else str(limits["burst"]),
        f"{limits['min_accuracy']:g}" if limits["min_accuracy"] else "",
        f"{limits['timeout_ms']:g}" if limits["timeout_ms"] else "",
    ]


def _used(name: str, sent: list[dict[str, Any]]) -> list[str]:
    """Return what a tenant sent to each model, in sum, as cells; requests without a tenant have an empty name."""
    requests = sum(sum(item["requests"].values()) for item in sent)
    fine = sum(item["requests"].get("200", 0) for item in sent)
    return [
        name or "(none)",
        str(requests),
        str(requests - fine),
        str(sum(item["limited"] for item in sent)),
        str(sum(sum(item["rows"].values()) for item in sent)),
        f"{sum(item['active_j'] for item in sent):.4g}",
        f"{sum(item['active_g'] for item in sent):.4g}",
    ]
