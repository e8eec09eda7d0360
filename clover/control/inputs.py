"""What a decision was made from, as it is recorded beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clover.control.family import Family
from clover.types import State

if TYPE_CHECKING:
    from clover.control.controller import Controller


def inputs_of(controller: Controller, family: Family, state: State | None) -> dict[str, float | str | None]:
    """Return what a decision was made from."""
    reading = state.intensity if state is not None else controller.reading
    objective = state.objective if state is not None else None
    lam = objective.lam if objective is not None else None
    targets = family.targets
    return {
        "intensity_g_per_kwh": reading.g_per_kwh if reading is not None else None,
        "intensity_state": reading.state if reading is not None else None,
        "intensity_provider": reading.provider if reading is not None else None,
        "arrival_rate": state.arrival_rate if state is not None else family.rate(controller.config),
        "observed_rate": family.observed.get("arrival_rate"),
        "observed_p95_ms": family.observed.get("p95_ms"),
        "queue_rows": family.observed.get("queue_rows"),
        "missing_workers": float(family.missing),
        **devices_of(controller, family, state),
        "objective": objective.form if objective is not None else targets.form,
        "slo_ms": objective.slo_ms if objective is not None else targets.slo_ms,
        "accuracy_floor": objective.accuracy_floor if objective is not None else targets.accuracy_floor,
        "lambda": lam if lam is not None else family.lam(controller.config),
        **_budget_of(state),
    }


def _budget_of(state: State | None) -> dict[str, float | str | None]:
    """Return what a decision under an accuracy budget was made from besides."""
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


def devices_of(controller: Controller, family: Family, state: State | None) -> dict[str, float | str | None]:
    """Return which devices a decision was made for, and how low capacity goes on the way that was planned."""
    shapes = state.devices if state is not None else controller.devices_of(family)
    lost = controller.device_pool.lost()
    names = [*(shape.device for shape in shapes), *(f"{name} (lost)" for name in sorted(lost))]
    found: dict[str, float | str | None] = {"devices": ", ".join(names)}
    transition = family.transition
    if transition is not None and transition.steps:
        found["capacity_floor"] = transition.capacity_floor
        found["lowest_capacity"] = transition.lowest_capacity
        found["loses_s"] = transition.loses_s
    return found
