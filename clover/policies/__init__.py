"""Policies decide what to run, given a state.  They are interchangeable behind `clover.interfaces.Policy`.

objective         the best plan of the objective over every configuration (the default)
budget            an accuracy budget over a horizon, spent in the hours that the forecast says are clean
budget:online     the same without a forecast: the price of accuracy follows what was served
budget:flat       the same, blind to the grid: every hour counts as the reference intensity
static            the best fixed mix at the accuracy budget, whatever the grid does; also static:mix
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
NAME              one that an installed package adds (`clover.plugins`)
"""

from __future__ import annotations

import importlib
from typing import Any

from clover import plugins
from clover.errors import ConfigError
from clover.hints import did_you_mean, search_here
from clover.interfaces import Policy

POLICIES: dict[str, tuple[str, dict[str, Any]]] = {
    "objective": ("clover.policies.objective:ObjectivePolicy", {}),
    "budget": ("clover.policies.budget:BudgetPolicy", {}),
    "budget:flat": ("clover.policies.budget:BudgetPolicy", {"flat": True}),
    "budget:online": ("clover.policies.budget:BudgetPolicy", {"online": True}),
    "base": ("clover.policies.objective:BasePolicy", {}),
    "base:fitted": ("clover.policies.objective:BasePolicy", {"fitted": True}),
    "static": ("clover.policies.budget:StaticMixPolicy", {"name": "static"}),
    "static:mix": ("clover.policies.budget:StaticMixPolicy", {"name": "static:mix"}),
    "clover": ("clover.policies.paper.schemes:CloverPolicy", {}),
    "clover-artifact": ("clover.policies.paper.schemes:CloverArtifactPolicy", {}),
    "blover": ("clover.policies.paper.schemes:BloverPolicy", {}),
    "co2opt": ("clover.policies.paper.schemes:Co2OptPolicy", {}),
    "oracle": ("clover.policies.paper.schemes:OraclePolicy", {}),
    "oracle:alike": ("clover.policies.paper.schemes:OraclePolicy", {"alike": True}),
}
"""Module and class of each policy that ships, by name, and what it is made with; imported when it is built."""

BUDGETED = frozenset({"budget", "budget:flat", "budget:online", "static", "static:mix"})
"""Policies that hold to the accuracy budget."""
SPENDING = frozenset({"budget", "budget:flat", "budget:online"})
"""Policies that use what was served, and the forecast."""


def build(name: str) -> Policy:
    """Return the policy of that name; ConfigError if there is none."""
    kind, colon, rest = name.partition(":")
    if name in POLICIES:
        path, options = POLICIES[name]
    elif kind == "static":
        if not rest:
            raise ConfigError("static:VARIANT needs a variant, as in static:small; static alone is the best fixed mix")
        path, options = "clover.policies.objective:StaticPolicy", {"variant": rest}
    elif colon and rest:
        return _custom(kind, rest)
    elif (make := plugins.find("policies", name)) is not None:
        return _policy_of(make, name)
    else:
        known = ", ".join((*_known(), "static:VARIANT"))
        raise ConfigError(f"unknown policy {name!r}{did_you_mean(name, _known())}: {known} or module:attribute")
    module, _, attribute = path.partition(":")
    policy: Policy = getattr(importlib.import_module(module), attribute)(**options)
    return policy


def ships(name: str) -> bool:
    """Return whether `name` is a policy of Clover's, and not one of a user's own."""
    return name in POLICIES or name.partition(":")[0] == "static"


def _known() -> tuple[str, ...]:
    return (*POLICIES, *plugins.names("policies"))


def _custom(module: str, attribute: str) -> Policy:
    name = f"{module}:{attribute}"
    search_here(module)
    try:
        policy_like = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"policy {name}: {error}{did_you_mean(name, _known())}") from error
    return _policy_of(policy_like, name)


def _policy_of(policy_like: Any, name: str) -> Policy:
    """Return the policy that `policy_like` is or makes.  Raises ConfigError."""
    is_policy = hasattr(policy_like, "propose") and not isinstance(policy_like, type)
    if not is_policy and not callable(policy_like):
        raise ConfigError(f"policy {name} is neither a policy nor callable")
    policy: Policy = policy_like if is_policy else policy_like()
    if not callable(getattr(policy, "propose", None)):
        raise ConfigError(f"policy {name} has no method propose(state)")
    if not isinstance(getattr(policy, "name", None), str):
        raise ConfigError(f"policy {name} needs a name")
    return policy
