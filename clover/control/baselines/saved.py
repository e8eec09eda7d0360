"""What was saved against the best fixed mix and BASE, and how either side is known: for state, metrics and people.

There is no figure before something was served, and no percentage before `LEAST_ROWS` rows: in the first seconds control
(mostly planning) would be most of it.  A saving may be negative; the text then says "emitted ... more".  A saving holds
within the boundary `server` (`clover.accounting.boundaries`) and has a 95 % interval, which `bench.truth` checks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np

from clover.accounting.boundaries import DEFAULT, LEAST_ROWS
from clover.accounting.labels import METER_ERROR, MODELLED_ERROR, DeviceLines, join_labels, methods_of
from clover.control.baselines.comparison import ComparisonSums, Errors, Floats, together
from clover.control.baselines.shadow import Shadow
from clover.quantities import grams

KINDS = ("matched", "base")
"""The most telling first: what following the grid brought, accuracy being equal."""
_MODELLED = 0.6
"""By which part modelled watts may be off, at least: published servers of one kind lie that far apart."""
_TELLING = 0.1
"""Part of a loss from which on it is said how much of it is control."""
_LEAST_POINTS = 0.005
"""Points of accuracy from which on a difference is stated: figures are rounded to that."""
_GRIDS = {
    "synthetic": "invented",
    "configured": "configured",
    "stand-in": "stand-in",
    "published": "published",
    "estimated": "estimated",
    "forecast": "foreseen",
}

Devices = Mapping[str, DeviceLines]
"""By name."""


class Compared(NamedTuple):
    """One comparison for the metrics, within the boundary `server`: what a model emitted, and what its shadow would
    have emitted.  `points`: accuracy given up, in percentage points.  `estimates`: grams saved, with both ends of their
    interval."""

    model: str
    against: str
    method: str
    served_g: float
    shadow_g: float
    points: float
    grid: str
    estimates: tuple[tuple[str, float], ...]


def sums_of(shadow: Shadow, kind: str) -> ComparisonSums:
    """Return the sums of the comparison with that kind of shadow."""
    return shadow.on_base if kind == "base" else shadow.matched


def saved(shadow: Shadow | None, devices: Devices | None = None) -> dict[str, Any] | None:
    """Return what a family saved so far against each shadow; None before anything was served."""
    return _saved([shadow], devices or {}) if shadow is not None and shadow.rows else None


def saved_by_all(shadows: Iterable[Shadow], devices: Devices | None = None) -> dict[str, Any] | None:
    """Return what all families together saved, each against its own shadow; None before anything was served."""
    having = [shadow for shadow in shadows if shadow.rows]
    return _saved(having, devices or {}) if having else None


def compared(shadows: Mapping[str, Shadow], devices: Devices | None = None) -> Iterator[Compared]:
    """Yield the comparisons as figures, for the metrics."""
    for name, shadow in shadows.items():
        for kind in KINDS:
            comparison = _Comparison.from_shadows([shadow], kind, devices or {})
            if comparison is not None:
                (_, served_g), (_, shadow_g) = comparison.sides()
                yield Compared(
                    model=name,
                    against=kind,
                    method=_method(_methods([shadow], devices or {})),
                    served_g=served_g,
                    shadow_g=shadow_g,
                    points=comparison.shadow_accuracy - comparison.accuracy,
                    grid=grid_of([shadow]),
                    estimates=comparison.ends(),
                )


def label_of(shadows: Sequence[Shadow], devices: Devices) -> str:
    """Return how a saving is known, in words.  The shadow is always modelled; what was served may be measured, or some
    of it on a machine of which one device has a counter and another has none."""
    methods = _methods(shadows, devices)
    profiles = {item.energy_method for shadow in shadows for item in shadow.family.profile.latency}
    word = _method(methods)
    if "measured" in methods:
        kinds = ["metered", *sorted(methods - {"measured", "none"})]
        word += f" from {' and '.join(kinds)} joules"
    return f"{word}, analytical profile" if "analytical" in profiles else word


def _methods(shadows: Iterable[Shadow], devices: Devices) -> set[str]:
    """Return how the joules of everything that served are known, whether it answered rows or not."""
    return methods_of(devices.values()).union(*(shadow.methods for shadow in shadows))


def _method(methods: Set[str]) -> str:
    return "emulated" if "emulated" in methods else "modelled"


def grid_of(shadows: Iterable[Shadow]) -> str:
    """Return how the intensities are known at which grams were priced, joined by " + "; "unknown" without any."""
    return join_labels(grid for shadow in shadows for grid in shadow.grids) or "unknown"


def meter_error(methods: Iterable[str], devices: Devices) -> float:
    """Return by which part the meters' watts may be off.  A meter says so itself for energy above idle, of which
    savings are made; a model counts as no better than `_MODELLED`.  It is the mean over `devices` by these joules, or
    the largest of `methods` if they used none."""
    said = _by_joules({name: _active_error(line) for name, line in devices.items()}, devices)
    return said if said is not None else max((_usual(method) for method in methods), default=MODELLED_ERROR)


def part_error(methods: Iterable[str], devices: Devices, idle_part: float, own_part: float) -> float:
    """Return by which part the percentage saved may be off because of the meters, if idle power is `idle_part` of what
    the shadow uses, and what was used is `own_part` of it.  A counter's own error is on both sides, but energy that was
    wrongly taken for idle moves the difference.  Where a model stands in for a counter, watts at rest and at work err
    independently."""
    errors = {}
    for name, line in devices.items():
        active = _active_error(line)
        if line["method"] == "modelled":
            errors[name] = idle_part * math.hypot(active, _MODELLED)
        else:
            errors[name] = own_part * math.sqrt(max(active**2 - _usual(str(line["method"])) ** 2, 0.0))
    said = _by_joules(errors, devices)
    return said if said is not None else idle_part * max((_usual(method) for method in methods), default=MODELLED_ERROR)


def _by_joules(errors: Mapping[str, float], devices: Devices) -> float | None:
    """Return the mean of `errors` by device, by joules above idle; None if there were none."""
    joules = {name: max(float(line["measured_j"]) - float(line["rest_j"]), 0.0) for name, line in devices.items()}
    whole_j = sum(joules.values())
    return sum(errors[name] * joules[name] for name in devices) / whole_j if whole_j > 0.0 else None


def _active_error(line: DeviceLines) -> float:
    ends = ("active_uncertainty_low", "active_uncertainty_high")
    usual = _usual(str(line["method"]))
    said = max((abs(float(line[key])) for key in ends if key in line), default=usual)
    return max(said, _MODELLED) if line["method"] == "modelled" else said


def _usual(method: str) -> float:
    return METER_ERROR.get(method, MODELLED_ERROR)


class _Comparison:
    """One comparison of some families with their shadows."""

    def __init__(self, kind: str, parts: Sequence[tuple[Shadow, ComparisonSums]], devices: Devices) -> None:
        self.kind = kind
        self._parts = parts
        self.shadows = [shadow for shadow, _ in parts]
        self._devices, self._methods = devices, {m for shadow in self.shadows for m in shadow.methods}
        self.verified = all(sums.verified(shadow.off) for shadow, sums in parts)
        self.rows = sum(sums.rows for _, sums in parts)
        self.accuracy = sum(sums.right for _, sums in parts) / self.rows
        self.shadow_accuracy = sum(sums.shadow_right for _, sums in parts) / self.rows
        self.beyond = sum(sums.beyond for _, sums in parts)
        self.early = self.rows < LEAST_ROWS

    @classmethod
    def from_shadows(cls, shadows: Sequence[Shadow], kind: str, devices: Devices) -> _Comparison | None:
        """Return the comparison; None if no rows can be compared yet."""
        parts = [(shadow, sums_of(shadow, kind)) for shadow in shadows]
        parts = [(shadow, sums) for shadow, sums in parts if sums.rows]
        return cls(kind, parts, devices) if parts else None

    def sides(self) -> tuple[Floats, Floats]:
        """Return what was used, and what the shadow would have, as [joules, grams]."""
        served = [sums.served for _, sums in self._parts]
        return np.sum(served, axis=0), np.sum([sums.shadow for _, sums in self._parts], axis=0)

    def without_idle(self) -> tuple[Floats, Floats]:
        """Return both sides without the idle power of what workers may hold."""
        front_end = [sums.overheads.front_end for _, sums in self._parts]
        served = [sums.active + sums.overheads.front_end + sums.overheads.control for _, sums in self._parts]
        shadow = [sums.shadow_active for _, sums in self._parts]
        return np.sum(served, axis=0), np.sum([*shadow, *front_end], axis=0)

    def errors(self) -> Errors:
        """Return how far off the grams saved may be."""
        meter = meter_error(self._methods, self._devices)
        return together(sums.errors(shadow.off, meter) for shadow, sums in self._parts)

    def ends(self) -> tuple[tuple[str, float], ...]:
        """Return grams saved with both ends of their interval."""
        served, shadow = self.sides()
        saved_g, half = float((shadow - served)[1]), self.errors().total
        return ("likely", saved_g), ("low", saved_g - half), ("high", saved_g + half)

    def figures(self) -> dict[str, Any]:
        """Return joules and grams, with their interval; `control_g`: what control emitted, which is ours alone."""
        (used_j, emitted_g), (shadow_j, shadow_g) = (side.tolist() for side in self.sides())
        errors = self.errors()
        part = None if self.early else _part(shadow_g, emitted_g)
        out: dict[str, Any] = {
            "grams": shadow_g - emitted_g,
            "low": shadow_g - emitted_g - errors.total,
            "high": shadow_g - emitted_g + errors.total,
            "part": part,
            "part_low": None,
            "part_high": None,
            "joules": shadow_j - used_j,
            "emitted_g": emitted_g,
            "shadow_g": shadow_g,
            "used_j": used_j,
            "shadow_j": shadow_j,
            "control_g": sum(float(sums.overheads.control[1]) for _, sums in self._parts),
            "errors_g": errors._asdict(),
            "verified": self.verified,
        }
        if part is not None:
            idle_g = sum(float((sums.overheads.idle + sums.overheads.unowned)[1]) for _, sums in self._parts)
            by_meter = abs(part) * part_error(self._methods, self._devices, idle_g / shadow_g, emitted_g / shadow_g)
            for key, sign in (("part_low", -1.0), ("part_high", 1.0)):
                # An error of the shadow moves what is divided by, too.
                by_model = part - 1.0 + emitted_g / max(shadow_g + sign * errors.model, 1e-300)
                out[key] = part + sign * math.hypot(by_model, by_meter)
        return out


def _saved(shadows: Sequence[Shadow], devices: Devices) -> dict[str, Any]:
    label, rows = label_of(shadows, devices), sum(shadow.rows for shadow in shadows)
    out: dict[str, Any] = {"since_s": min(shadow.since_s for shadow in shadows)}
    perfect = any(shadow.perfect_forecast for shadow in shadows)
    grid = grid_of(shadows)
    held = sum(shadow.held_rows for shadow in shadows)
    known = [label, f"within the {DEFAULT}", _grid_words(grid), *(["perfect forecast"] if perfect else [])]
    out |= {"rows": rows, "label": label, "boundary": DEFAULT, "grid": grid, "perfect_forecast": perfect}
    out["known"] = "; ".join(known)
    for kind in KINDS:
        comparison = _Comparison.from_shadows(shadows, kind, devices)
        waiting = held if kind != "base" else 0
        out[kind] = _figures(comparison, known, rows - waiting, waiting) if comparison is not None else None
    return out


def _figures(found: _Comparison, known: Sequence[str], rows: int, waiting: int) -> dict[str, Any]:
    """Return one comparison.  Of `rows` rows, those that it neither has nor has `waiting` were left out."""
    name, alike = _name(found), "equal load and hardware"
    if found.kind == "base":
        alike = f"{_places([shadow.base for shadow in found.shadows])}, {alike}"
    served, shadow = found.without_idle()
    figures: dict[str, Any] = {
        "against": f"{name}: {alike}, {', '.join(known)}",
        **found.figures(),
        "part_without_idle": None if found.early else _part(float(shadow[1]), float(served[1])),
        "accuracy": found.accuracy,
        "shadow_accuracy": found.shadow_accuracy,
        "accuracy_given_up": found.shadow_accuracy - found.accuracy,
        "rows": found.rows,
        "rows_left_out": rows - found.rows,
        "rows_waiting": waiting,
        "rows_beyond_shadow": found.beyond,
    }
    return figures | {"short": _short(figures, name), "words": _words(figures, name, "; ".join([alike, *known]))}


def _name(found: _Comparison) -> str:
    if found.kind == "base":
        return "BASE"
    return f"the best fixed mix at {found.shadow_accuracy:.2f} %, {_as_served(found)}"


def _as_served(found: _Comparison) -> str:
    """Return how the accuracy of `matched` relates to the one served, which may lie beyond all fixed mixes."""
    more = found.shadow_accuracy - found.accuracy
    if abs(more) < _LEAST_POINTS:
        return "as served"
    end = "lowest" if more > 0.0 else "highest"
    return f"the {end} that a fixed mix has at this load ({found.accuracy:.2f} % was served)"


def _places(mixes: Sequence[Any]) -> str:
    if len(mixes) > 1:
        return "of each model"
    return mixes[0].words if mixes[0] is not None else "no device now"


def _grid_words(grid: str) -> str:
    if grid == "unknown":
        return "on a grid of unknown origin"
    if grid == "synthetic":
        return "on an invented grid"
    return f"on {' and '.join(_grid_word(word) for word in grid.split(' + '))} intensities"


def _grid_word(known: str) -> str:
    method = known.removeprefix("replayed ")
    return known.removesuffix(method) + _GRIDS.get(method, method)


def _part(shadow: float, served: float) -> float | None:
    return (shadow - served) / shadow if shadow > 0.0 else None


def _short(figures: Mapping[str, Any], name: str) -> str:
    """Return grams with their interval and the part, in words."""
    if figures["rows"] < LEAST_ROWS:
        return f"too early to say ({figures['rows']:.0f} of the {LEAST_ROWS} rows that a percentage takes)"
    part = figures["part"]
    if part is None:
        return f"nothing was emitted, by itself or by {name}"
    less = _is_saving(figures["grams"], part)
    sign = 1.0 if less else -1.0
    low, high = sorted((sign * figures["low"], sign * figures["high"]))
    doubt = ": may be nothing" if low < 0.0 < high else ""
    ends = sorted(100.0 * sign * figures[end] for end in ("part_low", "part_high"))
    known = "" if figures["verified"] else f"; {'BASE' if name == 'BASE' else 'that mix'} not yet verified here"
    interval = f"(95 %: {grams(low)} to {grams(high)}, {ends[0]:.1f} to {ends[1]:.1f} %{doubt}{known})"
    mass, percent = f"{grams(abs(figures['grams']))} of CO2e", f"{abs(100.0 * part):.1f} %"
    if less:
        return f"saved {mass} {interval}, {percent} of {name}"
    control, is_large = figures["control_g"], figures["control_g"] >= _TELLING * abs(figures["grams"])
    cause = f"; {grams(control)} of ours is control (planning, profiling, swaps)" if is_large else ""
    return f"emitted {mass} more {interval}, {percent} more than {name}{cause}"


def _is_saving(mass_g: float, part: float) -> bool:
    return mass_g >= 0.0 or part > -0.0005  # rounded to nothing


def _words(figures: Mapping[str, Any], name: str, known: str) -> str:
    without, points = figures["part_without_idle"], figures["accuracy_given_up"]
    text = f"{_short(figures, name)} ({known})"
    if figures["rows"] < LEAST_ROWS:
        return f"against {name}: {text}"
    if without is not None:
        text += f", {abs(100.0 * without):.1f} % {'less' if without > -0.0005 else 'more'} without idle power"
    if abs(points) >= _LEAST_POINTS:
        text += f"; {abs(points):.2f} points of accuracy {'given up' if points > 0.0 else 'gained'}"
    if figures["rows_beyond_shadow"]:
        beyond = 100.0 * figures["rows_beyond_shadow"] / figures["rows"]
        text += f"; it could not have served the load of {beyond:.0f} % of the rows, counted at its longest batches"
    if figures["rows_left_out"]:
        text += f"; {figures['rows_left_out']:.0f} rows left out, for which there was no shadow"
    if figures["rows_waiting"]:
        text += f"; {figures['rows_waiting']:.0f} rows wait until it is known"
    return text
