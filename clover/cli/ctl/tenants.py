"""What each tenant may send, what it sent, and what that cost, for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from clover.terminal import Column, filled, sheet

_COLUMNS = tuple(
    Column(head, right=at > 0)
    for at, head in enumerate(
        (
            "tenant",
            "priority",
            "rows/s",
            "burst",
            "accuracy %",
            "deadline ms",
            "requests",
            "refused",
            "over rate",
            "rows",
            "active J",
            "joules are",
            "g CO2e",
            "grams are",
        )
    )
)


def show(answer: dict[str, Any], console: Console) -> None:
    """Print a table of the tenants of a server's state, over all of its models."""
    totals = answer.get("totals") or {}
    configured = totals.get("tenants")
    if not configured:
        console.print(Text("no tenants are configured: the server's file has no [[tenant]]"))
        return
    models = [model.get("tenants", {}) for model in totals.get("models", {}).values()]
    names = sorted({*configured, *(name for model in models for name in model)})
    rows = [_row(name, configured.get(name), [model[name] for model in models if name in model]) for name in names]
    console.print(sheet(_COLUMNS, rows, filled(_COLUMNS, rows)))


def _row(name: str, limits: dict[str, Any] | None, sent: list[dict[str, Any]]) -> list[str]:
    """Return the cells of one tenant; `limits` is None for what no tenant sent, and for one that is no more."""
    requests = sum(sum(item["requests"].values()) for item in sent)
    fine = sum(item["requests"].get("200", 0) for item in sent)
    cells = ["", "", "", "", ""]
    if limits is not None:
        rate = "no limit" if limits["rate"] is None else f"{limits['rate']:g}"
        burst = "" if limits["burst"] is None else str(limits["burst"])
        floor = f"{limits['min_accuracy']:g}" if limits["min_accuracy"] else ""
        deadline = f"{limits['timeout_ms']:g}" if limits["timeout_ms"] else ""
        cells = [str(limits["priority"]), rate, burst, floor, deadline]
    return [
        name or "(none)",
        *cells,
        str(requests),
        str(requests - fine),
        str(sum(item["limited"] for item in sent)),
        str(sum(sum(item["rows"].values()) for item in sent)),
        f"{sum(item['active_j'] for item in sent):.4g}",
        " + ".join(sorted({item["method"] for item in sent if item["method"]})),
        f"{sum(item['active_g'] for item in sent):.4g}",
        " + ".join(sorted({item["grams_method"] for item in sent if item["grams_method"]})),
    ]
