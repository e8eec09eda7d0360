"""Policies decide what to run, given a state.  They are interchangeable behind `clover.interfaces.Policy`.

objective         the best plan of the objective over every configuration (the default)
budget            an accuracy budget over a horizon, spent in the hours that the forecast says are clean
budget:flat       the same, blind to the grid: every hour counts as the reference intensity
static            the best static mix at the accuracy budget, whatever the grid does; also static:mix
static:VARIANT    one variant on the layout that serves it best
base              BASE: the best variant on whole devices
base:fitted       BASE on as few devices as its load needs, the others without workers
clover            the paper's simulated annealing over the configuration graph (`paper` has this and all below)
clover-artifact   the same as the public artifact does it, its fault included: not to serve with
blover            random search over layouts and variants
co2opt            the first-listed (least accurate) variant on the smallest slices everywhere
oracle            the best f with load and intensity known, devices free
oracle:alike      the same, all devices of a kind alike
module:attribute  a policy of your own: a class or function called without arguments, or an instance
"""

from __future__ import annotations

import importlib

from clover.errors import ConfigError
from clover.interfaces import Policy
from clover.policies.base import BasePolicy
from clover.policies.budget import BudgetPolicy, StaticMixPolicy
from clover.policies.objective import ObjectivePolicy
from clover.policies.paper import SCHEMES
from clover.policies.static import StaticPolicy

__all__ = [
    "BUDGETED",
    "SPENDING",
    "BasePolicy",
    "BudgetPolicy",
    "ObjectivePolicy",
    "StaticMixPolicy",
    "StaticPolicy",
    "build",
]

BUDGETED = frozenset({"budget", "budget:flat", "static", "static:mix"})
"""Policies that hold to the accuracy budget."""
SPENDING = frozenset({"budget", "budget:flat"})
"""Those that look ahead and at what was served."""


def build(name: str) -> Policy:
    """Return the policy of that name; ConfigError if there is none."""
    if name == "objective":
        return ObjectivePolicy()
    if name in ("base", "base:fitted"):
        return BasePolicy(fitted=name != "base")
    if name in SPENDING:
        return BudgetPolicy(flat=name != "budget")
    if name in BUDGETED:
        return StaticMixPolicy(name)
    if name in SCHEMES:
        return SCHEMES[name]()
    kind, colon, rest = name.partition(":")
    if kind == "static":
        if not rest:
            raise ConfigError("static:VARIANT names the variant to serve, as in static:small; static is the best mix")
        return StaticPolicy(rest)
    if not colon or not rest:
        ours = ("objective", "budget", "budget:flat", "base", "base:fitted", "static", "static:VARIANT")
        known = ", ".join((*ours, *SCHEMES))
        raise ConfigError(f"unknown policy {name!r}: {known} or module:attribute")
    return _custom(kind, rest)


def _custom(module: str, attribute: str) -> Policy:
    name = f"{module}:{attribute}"
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"policy {name}: {error}") from error
    policy = found if hasattr(found, "propose") and not isinstance(found, type) else None
    if policy is None:
        if not callable(found):
            raise ConfigError(f"policy {name} is neither a policy nor callable")
        policy = found()
    if not callable(getattr(policy, "propose", None)):
        raise ConfigError(f"policy {name} has no method propose(state)")
    if not isinstance(getattr(policy, "name", None), str):
        raise ConfigError(f"policy {name} needs a name")
    return policy  # type: ignore[no-any-return]
