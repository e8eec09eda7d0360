"""The body of GET /v2/clover/state."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec

from clover.carbon import describe
from clover.control.baselines.saved import Devices, saved
from clover.control.baselines.shadows import Shadows
from clover.control.core_need import CoreNeed
from clover.control.state.capacity import running_capacity
from clover.control.state.context import Context
from clover.control.state.family import Family
from clover.control.watch.slo import slo_report
from clover.control.wording import join_names, span
from clover.planning.model.problem import accuracies
from clover.policies import BUDGETED, SPENDING
from clover.policies.plans import NOTHING_TO_SAVE
from clover.profiles import cut_short_by_variant
from clover.types import Assignment, DeviceShape, Reading, Transition


def report(
    context: Context, shadows: Shadows, core_need: CoreNeed, totals: Callable[[], dict[str, Any]] | None
) -> dict[str, Any]:
    """Return mode, intensity, the idle part of the energy, and per family deployment, routing, prediction, targets,
    savings, observations and the last decision; `totals` gives what the server counted."""
    reading = context.grid.reading
    counted = totals() if totals is not None else {}
    devices = counted.get("devices", {})
    out: dict[str, Any] = {
        "mode": context.mode,
        "frozen": context.frozen,
        "policy": context.config.policy,
        "grid_s": context.grid.now(),
        "intensity": intensity(reading, context.grid.trouble) if reading is not None else None,
        "devices": [_device(context, shape) for shape in context.device_pool.shapes().values()],
        "models": {name: _family(context, shadows, family, devices) for name, family in context.families.items()},
        "decisions": dict(context.decisions.counts),
    }
    if totals is not None:
        out["totals"] = counted
        out["idle"] = core_need.report(devices)
    return out


def intensity(reading: Reading, trouble: str = "") -> dict[str, Any]:
    """Return a reading with a label that says how it is known, and what failed if something stands in."""
    return {**msgspec.to_builtins(reading), "label": describe(reading), "trouble": trouble}


def _transition(transition: Transition) -> dict[str, Any]:
    return {
        "steps": len(transition.steps),
        "kept": len(transition.kept),
        "holds": transition.holds,
        "capacity_floor": transition.capacity_floor,
        "lowest_capacity": transition.lowest_capacity,
        "lost_capacity": transition.lost_capacity,
        "loses_s": transition.loses_s,
        "loses_how": transition.loses_how,
        "memory": transition.memory,
    }


def workers(deployment: tuple[Assignment, ...]) -> list[dict[str, Any]]:
    """Return a deployment in a form for people."""
    return [
        {
            "placement": item.placement.id,
            "device": item.placement.device,
            "profile": item.placement.profile,
            "variant": item.variant,
            "backend": item.backend,
        }
        for item in deployment
    ]


def _device(context: Context, shape: DeviceShape) -> dict[str, Any]:
    """Return a device as it is now: the family it is assigned to, its layout, and what is wrong with it."""
    device_pool, name = context.device_pool, shape.device
    gpu = device_pool.gpu(name)
    gpu_report = gpu.report() if gpu is not None else {}
    here = [
        {"placement": item.placement.id, "profile": item.placement.profile, "family": family.name, **_work(item)}
        for family in context.families.values()
        for item in family.desired
        if item.placement.device == name
    ]
    return {
        "device": name,
        "kind": shape.kind,
        "label": shape.label,
        "emulated": shape.emulated,
        "slices": shape.slices,
        "lost": name in device_pool.lost(),
        "family": ", ".join(device_pool.owners(name)),
        "layout": sorted(here, key=lambda item: item["placement"]),
        "layouts": len(shape.layouts),
        "quarantined": gpu_report.get("quarantined", []),
        "foreign": gpu_report.get("foreign", []),
        **context.parked.report(shape),
        "fixed": gpu_report.get("fixed", ""),
    }


def _work(item: Assignment) -> dict[str, str]:
    return {"variant": item.variant, "backend": item.backend}


def _budget(context: Context, family: Family) -> dict[str, Any] | None:
    """Return how the accuracy budget stands; None if the policy in force has none."""
    policy, ledger = context.policy_of(family), family.ledger
    if policy not in BUDGETED:
        return None
    budget: dict[str, Any] = {
        "accuracy_budget": family.config.accuracy_budget,
        "accuracy_target": _accuracy_target(family),
    }
    if policy not in SPENDING:
        return budget
    begun = not math.isnan(ledger.since_s)
    return {
        **budget,
        "horizon_s": family.config.budget_horizon_s,
        "since_s": ledger.since_s if begun else None,
        "rows": ledger.rows,
        "accuracy": ledger.accuracy_rows / ledger.rows if ledger.rows else None,
        "unkept": ledger.unkept,
        "forecast": ledger.label,
        "forecast_error_g_per_kwh": context.grid.forecast_error,
    }


def budget_gauges(context: Context, family: Family) -> dict[str, float]:
    """Return the accuracy budget for the metrics, in points below the best variant: `allowed` on average, and `spent`
    since the horizon began, once rows were served; empty if the policy in force spends none."""
    ledger = family.ledger
    if context.policy_of(family) not in SPENDING:
        return {}
    best = max(accuracies(family.profile).values(), default=0.0)
    spent = best - ledger.accuracy_rows / ledger.rows if ledger.rows else 0.0
    return {"allowed": family.config.accuracy_budget, "spent": spent}


def capacity_gauges(context: Context, family: Family) -> dict[str, float]:
    """Return for the metrics how many rows a second can be served within `max_utilisation`: by the workers that run
    (`running`), and by the devices at the accuracy floor (`floor`); see `clover.control.state.capacity`."""
    share, most, deployed = context.share_of(family), context.config.max_utilisation, family.deployed
    running = 0.0
    if deployed is not None:
        reach = family.reach(deployed.routing)
        running = running_capacity(deployed.deployment, family.capacity(share), deployed.routing, reach)
    floor = family.floor_capacity.rows_per_s(
        family.corrected,
        context.devices_of(family.name),
        share=share,
        accuracy_floor=family.targets.accuracy_floor,
        cascades=family.cascades(context.config),
    )
    return {"running": most * running, "floor": most * floor}


def _family(context: Context, shadows: Shadows, family: Family, devices: Devices) -> dict[str, Any]:
    deployed, now_s = family.deployed, context.monotonic()
    plan = deployed.plan if deployed is not None else None
    last = context.decisions.last(family.name)
    ready = {item.placement.id + item.variant + item.backend for item in family.fleet.ready_assignments()}
    deployment = workers(family.desired)
    for item in deployment:
        item["ready"] = item["placement"] + item["variant"] + item["backend"] in ready
    pin = family.pin
    saved_here = saved(shadows.by_family.get(family.name), devices)
    return {
        "mode": context.mode_of(family),
        "frozen": context.frozen_of(family),
        "asleep": family.fleet.asleep,
        "pin": None if pin is None else pin.policy or msgspec.to_builtins(pin.configuration),
        "pin_forced": pin is not None and pin.forced,
        "configuration": msgspec.to_builtins(deployed.configuration) if deployed is not None else [],
        "deployment": deployment,
        "routing": msgspec.to_builtins(deployed.routing) if deployed is not None else None,
        "plan": None
        if plan is None
        else {
            "policy": plan.policy,
            "reason": plan.reason,
            "feasible": plan.feasible,
            "score": plan.score,
            "bound": plan.bound,
            "gap": plan.gap,
            "prediction": msgspec.to_builtins(plan.prediction),
            "permitted": msgspec.to_builtins(plan.permitted),
        },
        "targets": {
            "slo_ms": family.targets.slo_ms,
            "slo_source": family.slo_source,
            "accuracy_floor": family.targets.accuracy_floor,
            "accuracy_margin": family.margin(family.targets),
            "accuracy_margin_from": family.sample.source,
            "accuracy_cut_short": cut_short_by_variant(family.profile),
            "objective": family.targets.form,
            "lambda": family.lam(context.config),
            "lambda_derived": family.targets.lam is None,
            "reference_g_per_kwh": family.reference(context.config).g_per_kwh,
            "reference_from": family.reference(context.config).label,
        },
        "refused": family.memory_troubles.report(),
        "apart": family.memory_troubles.apart_report(family.alone(context.devices_of(family.name))),
        "budget": _budget(context, family),
        "profile_correction": family.learned.report(),
        "terms": _terms(context, family, saved_here),
        "saved": saved_here,
        "observed": dict(family.observed),
        "slo": slo_report(context, family),
        "guard": family.fleet.guard_report(),
        "demand": family.demand.report(now_s, family.fleet.accuracy_demand(), context.declined(family)),
        "verifying": family.watch is not None,
        "transition": family.applier.progress,
        "last_transition": None if family.transition is None else _transition(family.transition),
        "backed_off": [
            {"configuration": msgspec.to_builtins(configuration), "seconds_left": entry.until_s - now_s}
            for configuration, entry in family.backoffs.items()
            if entry.until_s > now_s
        ],
        "changes": family.changes,
        "thresholds_moved": family.turned,
        "rollbacks": family.rollbacks,
        "last_decision": None
        if last is None
        else {
            "id": last.id,
            "at": last.at,
            "count": last.count,
            "last_at": last.last_at,
            "trigger": last.trigger,
            "action": last.action,
            "detail": last.detail,
            "operator": last.operator,
        },
    }


def _terms(context: Context, family: Family, saved_here: dict[str, Any] | None) -> str:
    """Return what the policy in force may give up, by which means, and what it saved; `saved_here` is the family's part
    of the state.  Empty if the policy has no accuracy budget."""
    policy, config = context.policy_of(family), context.config
    points = family.config.accuracy_budget
    if policy not in BUDGETED or not points:
        return ""
    if context.rests(family):
        return f"gives up no accuracy: {NOTHING_TO_SAVE}; nothing is planned until the rate or the devices change"
    over = f" over {span(family.config.budget_horizon_s)}" if policy in SPENDING else ""
    cost = f"may give up {points:g} point{'' if points == 1.0 else 's'} of accuracy on average{over}"
    flags = ["--accuracy-budget 0"]  # the policy `objective` may go down to the floor, which is lower
    if len(family.profile.backend) == 1:
        cost, flags = "has one variant, so no accuracy is given up", []
    elif family.cascades(config):
        cost += ", asking cheap variants first"
        flags.append("--no-cascade")
    if family.may_wait(config, family.targets):
        cost += ", rows waiting for fuller batches within the SLO"
        flags.append("--no-waits")
    base = (saved_here or {}).get("base")
    ends = f" ({join_names(flags)} end{'s' if len(flags) == 1 else ''} that)" if flags else ""
    return f"{cost}{ends}; {base['short'] if base else 'nothing was served yet to save on'}"


def _accuracy_target(family: Family) -> float:
    """Return the mean accuracy (percent) that the accuracy budget of a family asks for."""
    best = max(accuracies(family.profile).values(), default=0.0)
    return max(family.targets.accuracy_floor, best - family.config.accuracy_budget)
