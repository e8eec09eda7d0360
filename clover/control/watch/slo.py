"""Observes the SLO of a family and its rows that wait, and says how the SLO stands: in log, state, banner, metrics."""

from __future__ import annotations

import math
from typing import Any

from clover.control.state.context import Context
from clover.control.state.family import Family
from clover.control.state.slo.keeper import late, waiting
from clover.control.state.slo.pressure import SloSight
from clover.control.state.slo.waits import WaitSight
from clover.control.state.slo.windows import HORIZON_S
from clover.hints import duration, program
from clover.planning.model.problem import accuracies
from clover.planning.packing.evaluation import UNBOUNDED_MS
from clover.quantities import rate
from clover.types import words_of

_AS_PLANNED = 1.1
"""Times the rate that was planned for: what arrives, with its noise, is no more than that, and a row a second."""
_BEYOND = 2.0
"""Times a p95 that was predicted: what ran beside, or the profile, is to blame."""
_LARGER = 1.1
"""Times a p95 that was seen: an SLO which holds."""


def watch_slo(context: Context, family: Family, now_s: float) -> str:
    """Follow the SLO of `family`; return why to plan, in words, empty if there is no reason."""
    seen, deployed, slo_ms = family.observed, family.deployed, family.targets.slo_ms
    sight = SloSight(
        now_s=now_s,
        slo_ms=slo_ms,
        p95_ms=seen.get("p95_ms"),
        late=late(seen, slo_ms),
        queue_rows=waiting(seen),
        as_planned=seen.get("arrival_rate", 0.0) <= _AS_PLANNED * family.triggers.planned_rate + 1.0
        and not family.missing,
        deployment=family.desired,
        routing=deployed.routing if deployed is not None else None,
        plan=deployed.plan if deployed is not None else None,
        service_ms=_service_ms(context, family),
        bound=_bound(context, family),
    )
    return family.slo.observe(sight, seen, lambda: doing(context, family), lambda: _alarm_words(context, family, now_s))


def _service_ms(context: Context, family: Family) -> float:
    """Return the mean milliseconds of a row by itself on the workers that run, as plans know them; 0 if none does."""
    services = family.services(context.share_of(family))
    found = [services.get((item.variant, item.placement.profile)) for item in family.desired]
    times_ms = [service.mean_ms[0] for service in found if service is not None]
    return sum(times_ms) / len(times_ms) if times_ms else 0.0


def watch_waits(family: Family, now_s: float) -> str:
    """Return why to plan for the sake of rows that wait, in words; empty if there is no reason."""
    sight = WaitSight(
        now_s=now_s,
        routing=family.deployed.routing if family.deployed is not None else None,
        p95_ms=family.observed.get("p95_ms"),
        slo_ms=family.targets.slo_ms,
        late=family.slo.late,
    )
    return family.waiting.observe(sight)


def doing(context: Context, family: Family) -> str:
    """Return what runs and what is done about a missed SLO, in words for the log."""
    deployed, mode = family.deployed, context.mode_of(family)
    if deployed is None:
        return "nothing runs"
    runs = words_of(deployed.configuration)
    if context.frozen_of(family):
        return f"{runs} runs and is frozen"
    if mode != "active":
        return f"{runs} runs, and mode {mode} changes nothing"
    if family.pin is not None:
        return f"{runs} runs and is pinned"
    if not deployed.plan.feasible:
        return f"{runs} runs, the least bad plan: none meets the targets at this load"
    last = context.decisions.last(family.name)
    decided = f"; last decision: {last.action} ({last.trigger})" if last is not None else ""
    return f"{runs} runs, of which a p95 of {deployed.plan.prediction.p95_ms:.2f} ms was predicted{decided}"


def slo_report(context: Context, family: Family) -> dict[str, Any]:
    """Return how the SLO of a family stands, for the state."""
    slo, now_s = family.slo, context.monotonic()
    held, count = slo.windows.share()
    alarmed = not math.isnan(slo.alarm_s)
    return {
        "held_ratio": held / count if count else None,
        "windows_held": held,
        "windows": count,
        "best_p95_ms": slo.windows.best_ms(),
        "late": slo.late,
        "missed_s": None if math.isnan(slo.missed_s) else now_s - slo.missed_s,
        "slower": slo.pressure.factor,
        "alarm": _alarm_words(context, family, now_s) if alarmed else None,
        "words": held_words(family, now_s),
    }


def held_words(family: Family, now_s: float) -> str:
    """Return for how much of the last hour the SLO was held; before anything was answered, what is predicted."""
    held, count = family.slo.windows.share()
    if count:
        spanned_s = family.slo.windows.spanned_s(now_s)
        span = "hour" if spanned_s >= HORIZON_S - 1.0 else duration(spanned_s, rough=True)
        return f"SLO held {_percent(held, count)} of the last {span} ({held} of {count} windows of 10 s)"
    plan = family.deployed.plan if family.deployed is not None else None
    if plan is None:
        return "nothing was answered yet"
    p95 = f"p95 {plan.prediction.p95_ms:.3g} ms" if plan.prediction.p95_ms < UNBOUNDED_MS else "p95 without bound"
    return f"{p95} is predicted{'' if plan.feasible else ', and no plan meets every target'}; nothing was answered yet"


def _percent(held: int, count: int) -> str:
    """Return a share in percent, which is 100 % only if all were held."""
    return "100 %" if held == count else f"{min(99.9, round(100.0 * held / count, 1)):.1f} %"


def slo_gauges(family: Family) -> dict[str, float]:
    """Return how the SLO of a family stands, for the metrics.

    The share of windows held (`held_ratio`, once any counts), windows held and missed since the start, and whether
    there is an alarm."""
    slo = family.slo
    held, count = slo.windows.share()
    gauges = {
        "held": float(slo.windows.held),
        "missed": float(slo.windows.missed),
        "alarm": float(not math.isnan(slo.alarm_s)),
    }
    return gauges | ({"held_ratio": held / count} if count else {})


# --- the alarm ----------------------------------------------------------------------------------------------------


def _bound(context: Context, family: Family) -> str:
    """Return why no plan may change what runs; empty if one may."""
    mode = context.mode_of(family)
    if context.frozen_of(family):
        return f"it is frozen (`{program()} ctl freeze --off` lets plans be made)"
    if family.pin is not None and family.pin.configuration is not None:
        return f"it is pinned (`{program()} ctl pin --off` lets plans be made)"
    return f"mode {mode} changes nothing (`{program()} ctl set mode=active`)" if mode != "active" else ""


def _alarm_words(context: Context, family: Family, now_s: float) -> str:
    """Return that the SLO cannot be met, the best p95 that was seen, why, and what would help."""
    slo, slo_ms, deployed = family.slo, family.targets.slo_ms, family.deployed
    last = context.decisions.last(family.name)
    if last is not None and last.action == "fault":  # whether another plan would meet it is not known
        return f"no plan can be made: {last.detail}"
    since_s = slo.missed_s if not math.isnan(slo.missed_s) else -math.inf
    best_ms = slo.windows.best_ms(since_s)
    best = f"best p95 seen is {best_ms:.3g} ms" if best_ms is not None else "nothing was answered"
    why = slo.bound
    if not why and deployed is not None and deployed.plan.prediction.p95_ms > slo_ms:
        slower = slo.pressure.factor
        room = f" with services {slower:.2f} x as slow as profiled" if slower > 1.0 else ""
        why = f"no plan is predicted to meet it{room}, {words_of(deployed.configuration)} is the least bad"
    if not why and last is not None and last.action in ("refused", "failed", "rolled back"):
        why = f"the last plan was {last.action}: {last.detail}"
    why = why or "plans with more room did not meet it either"
    arriving = family.observed.get("arrival_rate", 0.0)
    return (
        f"this SLO cannot be met here: p95 <= {slo_ms:.3g} ms at {rate(arriving)} rows/s; {best}; {why}. "
        f"What would help: {'; '.join(_remedies(context, family, since_s))}"
    )


def _remedies(context: Context, family: Family, since_s: float) -> list[str]:
    """Return what would let the SLO be met, in words."""
    slo_ms, remedies = family.targets.slo_ms, []
    usual_ms = family.slo.windows.usual_ms(since_s)
    if usual_ms is not None:
        larger = _rounded_up(_LARGER * usual_ms)
        model = f" --model {family.name}" if len(context.families) > 1 else ""
        remedies.append(f"a larger SLO (`{program()} ctl set slo_ms={larger:g}{model}`)")
    alone, front_ms = _alone_ms(context, family), family.corrected.front_ms
    accuracy, floor = accuracies(family.profile), family.targets.accuracy_floor
    allowed = [variant for variant in alone if accuracy[variant] >= floor]
    swiftest = min(allowed, key=alone.__getitem__, default=None)
    if swiftest is None or alone[swiftest] <= slo_ms:
        remedies.append("less load, or more cores or devices")
    elif front_ms >= slo_ms:
        remedies.append(f"no other load, variant or device, as HTTP and the front end alone take {front_ms:.3g} ms")
    else:
        http = f", {front_ms:.3g} of them for HTTP" if front_ms > 0.0 else ""
        row = f"one row of {swiftest} by itself takes {alone[swiftest]:.3g} ms{http}"
        remedies.append(f"neither less load nor more of these devices, as {row}, but faster ones")
    faster = [variant for variant in alone if swiftest is None or alone[variant] < alone[swiftest]]
    cheaper = [variant for variant in faster if alone[variant] <= slo_ms]
    if cheaper:
        one = max(cheaper, key=accuracy.__getitem__)
        serves = f"{one} serve ({alone[one]:.3g} ms a row)"
        remedies.append(f"an accuracy floor of at most {accuracy[one]:.2f} %, which lets {serves}")
    deployed = family.deployed
    if deployed is not None and usual_ms is not None and usual_ms > _BEYOND * deployed.plan.prediction.p95_ms:
        again = f"`{program()} profile {family.config.family} --force` on a quiet machine"
        remedies.append(f"other programs off these cores, or another profile ({again}), as this one predicts less")
    return remedies


def _alone_ms(context: Context, family: Family) -> dict[str, float]:
    """Return the milliseconds of one row by itself for a client, by variant, on the best slice of the family's
    devices."""
    here = {place.profile for shape in context.devices_of(family.name) for layout in shape.layouts for place in layout}
    alone_ms: dict[str, float] = {}
    for (variant, name), service in family.services(context.share_of(family)).items():
        if name in here and variant in accuracies(family.profile):
            alone_ms[variant] = min(service.mean_ms[0] + service.front_ms, alone_ms.get(variant, math.inf))
    return alone_ms


def _rounded_up(ms: float) -> float:
    """Return `ms` rounded up to two digits."""
    unit = 10.0 ** (math.floor(math.log10(max(ms, 1e-6))) - 1)
    return round(math.ceil(ms / unit - 1e-9) * unit, 9)
