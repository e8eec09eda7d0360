"""Records how a request for a plan ended, and from which inputs the decision was made."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from clover.control.state.context import Context
from clover.control.state.decisions import DecisionEntry
from clover.control.state.family import Family
from clover.control.state.request import PlanRequest
from clover.control.state.triggers import RETRY_S
from clover.types import Configuration, Decision, Plan, State, words_of

log = logging.getLogger("clover.control")


@dataclass(frozen=True, kw_only=True)
class PlanResult:
    """How a request ended.  `state` is None if no plan was made for it, `plan` the one that was carried out or
    refused.  `before`: the configuration that ran until then."""

    action: str
    detail: str = ""
    state: State | None = None
    plan: Plan | None = None
    before: Configuration | None = None
    answers_demand: bool = True
    """Whether rows that ask for an accuracy of their own have their answer by this."""


def record(context: Context, family: Family, request: PlanRequest, started_s: float, result: PlanResult) -> Decision:
    """Keep and log the result of a request that began at `started_s` (monotonic)."""
    now_s = context.monotonic()
    # Only a plan of the policy in force answers the rows that wait for a worker.
    if result.answers_demand and request.pin is None and not request.dry_run:
        family.demand.record_decision(result.action, result.state, result.plan, family.desired, result.detail, now_s)
    if family.demand.held():
        family.triggers.again(now_s + RETRY_S)
    if result.action not in ("kept", "dry run", "fault"):  # a fault is logged once, with its traceback
        _log(family, request, result)
    return context.decisions.record(
        DecisionEntry(
            family=family.name,
            trigger=request.trigger,
            mode=context.mode_of(family),
            action=result.action,
            grid_s=context.grid.now(),
            inputs=inputs_of(context, family, result.state),
            plan=result.plan,
            detail=result.detail,
            seconds=now_s - started_s,
            operator=request.operator,
        )
    )


def _log(family: Family, request: PlanRequest, result: PlanResult) -> None:
    """Log who changed what, and from what to what."""
    text = result.action
    if result.action == "applied" and family.deployed is not None:
        before = words_of(result.before) if result.before else "nothing"
        text += f", from {before} to {words_of(family.deployed.configuration)}"
    if request.operator:
        text += f", by {request.operator}"
    level = logging.WARNING if result.action in ("failed", "rolled back") else logging.INFO
    log.log(level, "%s: %s: %s%s", family.name, request.trigger, text, f": {result.detail}" if result.detail else "")


def inputs_of(context: Context, family: Family, state: State | None) -> dict[str, float | str | None]:
    """Return the inputs of a decision: `state`, or the present ones if no plan was made."""
    reading = state.intensity if state is not None else context.grid.reading
    objective = state.objective if state is not None else None
    lam = objective.lam if objective is not None else None
    targets = family.targets
    return {
        "intensity_g_per_kwh": reading.g_per_kwh if reading is not None else None,
        "intensity_state": reading.state if reading is not None else None,
        "intensity_provider": reading.provider if reading is not None else None,
        "arrival_rate": state.arrival_rate if state is not None else family.rate(context.config),
        "observed_rate": family.observed.get("arrival_rate"),
        "observed_p95_ms": family.observed.get("p95_ms"),
        "queue_rows": family.observed.get("queue_rows"),
        "missing_workers": float(family.missing),
        **_devices_of(context, family, state),
        "objective": objective.form if objective is not None else targets.form,
        "slo_ms": objective.slo_ms if objective is not None else targets.slo_ms,
        "accuracy_floor": objective.accuracy_floor if objective is not None else targets.accuracy_floor,
        "lambda": lam if lam is not None else family.lam(context.config),
        **_budget_of(state),
        **({"profile_correction": corrected} if (corrected := family.learned.words()) else {}),
    }


def _budget_of(state: State | None) -> dict[str, float | str | None]:
    """Return the further inputs of a decision under an accuracy budget."""
    if state is None or state.objective.accuracy_budget is None:
        return {}
    served = state.served_accuracy_rows / state.served_rows if state.served_rows > 0.0 else None
    return {
        "accuracy_budget": state.objective.accuracy_budget,
        "budget_left_s": sum(part.seconds for part in state.ahead),
        "served_rows": state.served_rows,
        "served_accuracy": served,
        "forecast": state.forecast,
    }


def _devices_of(context: Context, family: Family, state: State | None) -> dict[str, float | str | None]:
    """Return the devices of a decision, and how low capacity goes during the planned transition."""
    shapes = state.devices if state is not None else context.devices_of(family.name)
    lost = context.device_pool.lost()
    names = [*(shape.device for shape in shapes), *(f"{name} (lost)" for name in sorted(lost))]
    inputs: dict[str, float | str | None] = {"devices": ", ".join(names)}
    transition = family.transition
    if transition is not None and transition.steps:
        inputs["capacity_floor"] = transition.capacity_floor
        inputs["lowest_capacity"] = transition.lowest_capacity
        inputs["loses_s"] = transition.loses_s
        inputs["loses_how"] = transition.loses_how
        if transition.memory:
            inputs["memory"] = transition.memory
    if family.memory_troubles.refused:
        inputs["refused"] = family.memory_troubles.words
    return inputs
