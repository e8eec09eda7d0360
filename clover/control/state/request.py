"""A request for a plan: its reason, and what replaces the targets, the pin and the inputs in force."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from clover.types import Configuration, Plan, State


@dataclass(frozen=True)
class Targets:
    """The limits a family is held to, and the form of its objective.  `lam` None: derived from the profile."""

    slo_ms: float
    accuracy_floor: float
    form: Literal["paper", "floor"]
    lam: float | None


@dataclass(frozen=True)
class Pin:
    """What an operator (or the configuration) holds a family to: a policy or one configuration.  `forced`: although it
    was predicted to break the family's targets."""

    policy: str = ""
    configuration: Configuration | None = None
    forced: bool = False

    @property
    def variants(self) -> set[str]:
        """The variants that it names."""
        kind, _, variant = self.policy.partition(":")
        groups = self.configuration or ()
        named = {name for group in groups for name in (group.variant, *group.beside)}
        return named | ({variant} if kind == "static" else set())


@dataclass(frozen=True, kw_only=True)
class ClusterOrder:
    """What the controller of a cluster asks of a family: to be ready for `rate` rows/s, and to keep a mean accuracy of
    at least `accuracy` (percent)."""

    accuracy: float
    rate: float

    policy = "objective"
    """The policy that a family is planned by meanwhile."""


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """One request for a plan of one family.  What is None stays as it is in force."""

    trigger: str
    """Why a plan is made, in words."""
    operator: str = ""
    """Who asks; empty if it is the controller itself."""
    force: bool = False
    """Act in any mode, and wait for no back-off: the start, or an operator."""
    dry_run: bool = False
    """Make the plan and change nothing."""
    pin: Pin | None = None
    targets: Targets | None = None
    g_per_kwh: float | None = None
    rate: float | None = None
    """Rows a second to plan for."""
    review: Callable[[State, Plan], tuple[bool, str]] | None = None
    """Whether a plan is refused, which changes nothing, and why; or what to note of it."""
