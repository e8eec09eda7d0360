"""What was saved compared with BASE and fixed mixes, and how either side is known: for state, metrics and people.

There is no figure before something was served.  A saving may be negative, and the text then says "lost".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from clover.control.baselines.shadow import ComparisonSums, Shadow

KINDS = ("base", "static", "matched")


class Compared(NamedTuple):
    """One comparison for the metrics: what a model used and emitted, and what its shadow would have, idle included.
    `points`: accuracy given up, in percentage points."""

    model: str
    against: str
    method: str
    served_j: float
    shadow_j: float
    served_g: float
    shadow_g: float
    points: float


def sums_of(shadow: Shadow, kind: str) -> ComparisonSums:
    """Return the sums of the comparison with the shadow of that kind."""
    return {"base": shadow.on_base, "static": shadow.static}.get(kind) or shadow.matched


def saved(shadow: Shadow | None) -> dict[str, Any] | None:
    """Return what a family saved so far against each shadow; None before anything was served."""
    if shadow is None or not shadow.rows:
        return None
    label = label_of([shadow])
    out: dict[str, Any] = {"since_s": shadow.since_s, "rows": shadow.rows, "label": label}
    for kind in KINDS:
        sums = sums_of(shadow, kind)
        words = shadow.base.words if shadow.base is not None else "no device now"
        out[kind] = _comparison(kind, sums, words, label, shadow.rows - sums.rows) if sums.rows else None
    return out


def saved_by_all(shadows: Iterable[Shadow]) -> dict[str, Any] | None:
    """Return the same for all families together, each against its own shadow; None before anything was served."""
    having = [shadow for shadow in shadows if shadow.rows]
    if not having:
        return None
    label, rows = label_of(having), sum(shadow.rows for shadow in having)
    out: dict[str, Any] = {"rows": rows, "label": label}
    for kind in KINDS:
        total = ComparisonSums()
        for shadow in having:
            for name, value in vars(sums_of(shadow, kind)).items():
                setattr(total, name, getattr(total, name) + value)
        only = having[0].base if len(having) == 1 else None
        words = only.words if only is not None else "of each model"
        out[kind] = _comparison(kind, total, words, label, rows - total.rows) if total.rows else None
    return out


def compared(shadows: Mapping[str, Shadow]) -> Iterator[Compared]:
    """Yield the same as figures, for the metrics."""
    for name, shadow in shadows.items():
        for kind in KINDS:
            sums = sums_of(shadow, kind)
            if sums.rows:
                yield Compared(
                    model=name,
                    against=kind,
                    method="emulated" if "emulated" in shadow.methods else "modelled",
                    served_j=sums.served_j + sums.idle_j,
                    shadow_j=sums.shadow_j + sums.idle_j,
                    served_g=sums.served_g + sums.idle_g,
                    shadow_g=sums.shadow_g + sums.idle_g,
                    points=(sums.shadow_right - sums.right) / sums.rows,
                )


def label_of(shadows: Iterable[Shadow]) -> str:
    """Return how a saving is known, in words.  The shadow is always modelled; what was served may be measured."""
    shadows = list(shadows)
    methods = {method for shadow in shadows for method in shadow.methods}
    profiles = {item.energy_method for shadow in shadows for item in shadow.family.profile.latency}
    word = "emulated" if "emulated" in methods else "modelled"
    if "measured" in methods:
        word += " from measured joules"
    return f"{word}, analytical profile" if "analytical" in profiles else word


def _comparison(kind: str, sums: ComparisonSums, words: str, label: str, left_out: int) -> dict[str, Any]:
    """Return one comparison.  `words`: the deployment that BASE is; `left_out`: rows without a shadow."""
    emitted_g, shadow_g = sums.served_g + sums.idle_g, sums.shadow_g + sums.idle_g
    used_j, shadow_j = sums.served_j + sums.idle_j, sums.shadow_j + sums.idle_j
    accuracy, shadow_accuracy = sums.right / sums.rows, sums.shadow_right / sums.rows
    name = {
        "base": "BASE",
        "static": f"the best fixed mix at {shadow_accuracy:.2f} %, the target",
        "matched": f"the best fixed mix at {shadow_accuracy:.2f} %, as served",
    }[kind]
    alike = f"{words}, equal load and hardware" if kind == "base" else "equal load and hardware"
    figures: dict[str, Any] = {
        "against": f"{name}: {alike}, {label}",
        "grams": shadow_g - emitted_g,
        "part": _part(shadow_g, emitted_g),
        "part_without_idle": _part(sums.shadow_g, sums.served_g),
        "joules": shadow_j - used_j,
        "emitted_g": emitted_g,
        "shadow_g": shadow_g,
        "used_j": used_j,
        "shadow_j": shadow_j,
        "accuracy": accuracy,
        "shadow_accuracy": shadow_accuracy,
        "accuracy_given_up": shadow_accuracy - accuracy,
        "rows": sums.rows,
        "rows_left_out": left_out,
        "rows_beyond_shadow": sums.beyond,
    }
    return figures | {"words": _words(figures, name, f"{label}; {alike}")}


def _part(shadow: float, served: float) -> float | None:
    return (shadow - served) / shadow if shadow > 0.0 else None


def _words(figures: Mapping[str, Any], name: str, known: str) -> str:
    part, without, points = figures["part"], figures["part_without_idle"], figures["accuracy_given_up"]
    if part is None:
        return f"nothing was emitted, by itself or by {name} ({known})"
    text = f"{_percent(part)} of the gCO2e of {name} ({known})"
    if without is not None:
        text += f", {_percent(without)} without idle power"
    if abs(points) >= 0.005:
        text += f"; {abs(points):.2f} points of accuracy {'given up' if points > 0.0 else 'gained'}"
    if figures["rows_beyond_shadow"]:
        beyond = 100.0 * figures["rows_beyond_shadow"] / figures["rows"]
        text += f"; it could not have served the load of {beyond:.0f} % of the rows, counted at its longest batches"
    if figures["rows_left_out"]:
        text += f"; {figures['rows_left_out']:.0f} rows left out, for which there was no shadow"
    return text


def _percent(part: float) -> str:
    return f"{'saved' if part > -0.0005 else 'lost'} {abs(100.0 * part):.1f} %"
