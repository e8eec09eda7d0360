"""What the policy in force may cost and what it has saved so far, in one line: for the banner and `ctl state`."""

from __future__ import annotations

from typing import Any

from clover.control.state.context import Context
from clover.control.state.family import Family
from clover.planning.model.problem import accuracies
from clover.policies import BUDGETED, SPENDING


def terms(context: Context, family: Family, saved: dict[str, Any] | None) -> str:
    """Return what the policy in force may give up, by which means, and what it saved; `saved` is the family's part of
    the state.  Empty if the policy trades nothing by an accuracy budget."""
    policy, config = context.policy_of(family), context.config
    points = family.config.accuracy_budget
    if policy not in BUDGETED or not points:
        return ""
    over = f" over {_span(family.config.budget_horizon_s)}" if policy in SPENDING else ""
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
    base = (saved or {}).get("base")
    ends = f" ({_joined(flags)} end{'s' if len(flags) == 1 else ''} that)" if flags else ""
    return f"{cost}{ends}; {base['short'] if base else 'nothing was served yet to save on'}"


def promise(context: Context, family: Family) -> str:
    """Return the accuracy that the policy in force keeps on average and in every plan, in words."""
    floor, policy = f"{family.targets.accuracy_floor:.2f} %", context.policy_of(family)
    if policy not in BUDGETED:
        return f"accuracy >= {floor}"
    span = f" over {_span(family.config.budget_horizon_s)}".replace(" over a day", " a day")
    least = f"{accuracy_target(family):.2f} %{span if policy in SPENDING else ''}"
    return f"accuracy on average at least {least}, no plan below {floor}"


def accuracy_target(family: Family) -> float:
    """Return the mean accuracy (percent) that the accuracy budget of a family asks for."""
    best = max(accuracies(family.profile).values(), default=0.0)
    return max(family.targets.accuracy_floor, best - family.config.accuracy_budget)


def _span(seconds: float) -> str:
    """Return a horizon in words: "a day", "36 hours", "7 days"."""
    days = seconds / 86_400.0
    if days == 1.0:
        return "a day"
    return f"{days:g} days" if days.is_integer() else f"{seconds / 3600.0:.3g} hours"


def _joined(flags: list[str]) -> str:
    """Return flags as "--a, --b and --c"."""
    *others, last = flags
    return f"{', '.join(others)} and {last}" if others else last
