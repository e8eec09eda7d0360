"""The objective that plans are scored by: its two forms, and lambda.

With E joules of active energy a row, CI the grid's intensity now and REF the reference intensity, emissions are
C = E CI against BASE's C_base = E_base CI, both measured in C_ref = E_base REF:

    paper   f = L (C_base - C) / C_ref - (1 - L) (A_base - A) / A_base         L = lambda
    floor   f =   (C_base - C) / C_ref

both to be maximised, subject to p95 <= SLO, accuracy >= floor and utilisation <= its limit.  If a cascade is more
accurate than A_base, the excess counts for nothing, so it is taken only if it is free.  PUE cancels.  Dividing by the
*reference* emissions keeps the weight of carbon proportional to the intensity: at a fixed L a gram is worth more
accuracy in a dirty hour than in a clean one.  (Divided by C_base, the intensity would cancel and no plan would ever
follow the grid.)

Both forms are linear in the shares of the variants once the energy of a row is given.  So f is a sum of *gains*, one a
variant: its share times the score of a plan that is all its own.  Without a p95 constraint the best plan is a point of
the concave hull of (energy, accuracy), cut at the floor.

**Lambda.**  If none is configured, `derive_lambda` takes the L at which the best variant and the cheapest mix at the
accuracy floor break even at the reference intensity: L dE = (1 - L) dA, with dE and dA the differences relative to
BASE.  Example: if the mix takes half of BASE's energy (dE = 0.5) and has 89 % instead of 90 % (dA = 0.0111), L is
dA / (dA + dE) = 0.022.  Below the reference intensity a plan then buys accuracy, above it a plan saves; points of the
hull in between switch around it in order of their price.  If there is nothing to trade (the floor is the best variant,
or the cheap mix saves nothing), L is 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec
from msgspec import structs

from clover.planning.model.problem import Problem, accuracies, problem_of, services_of
from clover.planning.model.queueing import Service, energy_j_per_row
from clover.planning.model.shares import best_mix
from clover.types import FamilyProfile, ObjectiveConfig, Prediction, State

HYSTERESIS = 0.02
"""Plans whose scores differ by less than this part of the scale (of saving all of BASE's emissions) count as equally
good in a search: of these the one that keeps most of what runs is taken."""
MARGIN = 0.01
"""Of BASE's joules a row: what a change of configuration has to save, as predictions err by about as much."""
LAMBDA_MARGIN = 0.25
"""Points above the floor, at most, of the cheapest mix that lambda is derived from."""
NOISE = 0.05
"""Of the intensity: by as much do readings of an unchanged grid differ from its mean."""

_PROFILED_LOAD = 0.6


@dataclass(frozen=True)
class Objective:
    """The objective of one moment, ready to score."""

    form: str
    lam: float
    carbon_weight: float
    base_energy_j: float
    base_accuracy: float
    slo_ms: float
    accuracy_floor: float
    planned_floor: float
    max_utilisation: float
    chain_floor: float | None = None
    """In place of `planned_floor` for chains of several stages, if their accuracies are bounds already."""

    @property
    def cascade_floor(self) -> float:
        """The accuracy (percent) that chains of several stages are held to."""
        return self.planned_floor if self.chain_floor is None else self.chain_floor

    def score(self, accuracy: float, energy_j: float) -> float:
        """Return f; higher is better.  `accuracy` in percent, `energy_j` a row."""
        saved = self.carbon_weight * (1.0 - energy_j / self.base_energy_j)
        if self.form == "floor":
            return saved
        lost = self.base_accuracy - accuracy
        lost *= lost > 0.0  # not `max`: the paper's policies score arrays
        return self.lam * saved - (1.0 - self.lam) * lost / self.base_accuracy

    @property
    def floor_text(self) -> str:
        """The floor in words, with the margin that plans keep above it."""
        margin = self.planned_floor - self.accuracy_floor
        return f"the floor of {self.accuracy_floor:.2f} %" + (f" and its margin of {margin:.2f}" if margin > 0 else "")

    @property
    def scale(self) -> float:
        """What saving all of BASE's emissions would be worth now."""
        return max(self.carbon_weight * (1.0 if self.form == "floor" else self.lam), 1e-9)

    def worth_leaving(self, running: Prediction, other: Prediction) -> bool:
        """Return whether `other` gains more over `running` than `MARGIN`, and would at any intensity within `NOISE` of
        this.

        Two plans that differ much would alternate with every reading near the intensity at which they break even.  The
        gain is linear in the intensity, so that the ends decide.
        """
        for part in (1.0 - NOISE, 1.0 + NOISE):
            then = replace(self, carbon_weight=self.carbon_weight * part)
            gain = then.score(other.accuracy, other.joules) - then.score(running.accuracy, running.joules)
            if gain <= MARGIN * then.scale:
                return False
        return True


def objective_of(state: State) -> Objective:
    """Return the objective of `state`, with lambda derived if none is configured."""
    config = state.objective
    lam = derive_lambda(state.profile, config) if config.lam is None else config.lam
    best = max(accuracies(state.profile).values(), default=0.0)
    return Objective(
        form=config.form,
        lam=lam,
        carbon_weight=state.intensity.g_per_kwh / config.reference_g_per_kwh,
        base_energy_j=max(state.profile.base.energy_j_per_row, 1e-12),
        base_accuracy=max(state.profile.base.accuracy, 1e-9),
        slo_ms=config.slo_ms,
        accuracy_floor=config.accuracy_floor,
        planned_floor=planned_floor(config, best),
        max_utilisation=config.max_utilisation,
        chain_floor=None if config.cascade_margin is None else planned_floor(config, best, cascade=True),
    )


def held_to(objective: Objective, accuracy: float) -> Objective:
    """Return the objective of the least carbon at `accuracy` percent, or at the planned floor if that is more."""
    chain_floor = None if objective.chain_floor is None else max(objective.chain_floor, accuracy)
    floor = max(objective.planned_floor, accuracy)
    return replace(objective, form="floor", planned_floor=floor, chain_floor=chain_floor)


def planned_floor(objective: ObjectiveConfig, best: float, *, cascade: bool = False) -> float:
    """Return the accuracy that plans (or chains: `cascade`) are held to: the floor and its margin, as far as the `best`
    variant reaches.

    A mix that lands on the floor exactly is below it, by chance, in half of all hours; the margin is what keeps the
    promise in the hours themselves.
    """
    margin = objective.accuracy_margin
    if cascade and objective.cascade_margin is not None:
        margin = objective.cascade_margin
    return max(objective.accuracy_floor, min(objective.accuracy_floor + margin, best))


def derive_lambda(profile: FamilyProfile, objective: ObjectiveConfig) -> float:
    """Return the lambda at which the best variant and the cheapest mix at the floor break even at the reference
    intensity.

    Each variant counts with its energy at 60 % load (BASE's load) on its most frugal profile.
    """
    accuracy = accuracies(profile)
    energy: dict[str, float] = {}
    for (variant, _), service in services_of(profile).items():
        own = _profiled_energy_j(service)
        energy[variant] = min(own, energy.get(variant, own))
    variants = sorted(set(accuracy) & set(energy))
    if not variants:
        return 0.5
    best = max(variants, key=lambda variant: (accuracy[variant], -energy[variant]))
    # How much a gram is worth does not depend on how many rows the evaluation set has.
    margin = min(objective.accuracy_margin, LAMBDA_MARGIN)
    floor = min(planned_floor(structs.replace(objective, accuracy_margin=margin), accuracy[best]), accuracy[best])
    mix = best_mix([-energy[v] for v in variants], [accuracy[v] for v in variants], [1.0] * len(variants), floor)
    assert mix is not None  # the floor is not above the best variant and no capacity limits
    mixed_energy = sum(share * energy[v] for share, v in zip(mix, variants, strict=True))
    mixed_accuracy = sum(share * accuracy[v] for share, v in zip(mix, variants, strict=True))
    saved = (energy[best] - mixed_energy) / max(profile.base.energy_j_per_row, 1e-12)
    lost = (accuracy[best] - mixed_accuracy) / max(profile.base.accuracy, 1e-9)
    return lost / (lost + saved) if saved > 0.0 and lost > 0.0 else 0.5


def _profiled_energy_j(service: Service) -> float:
    return energy_j_per_row((service,), _PROFILED_LOAD * service.capacity())


@dataclass(frozen=True)
class PlanningInput:
    """A state with the problem and objective derived from it.

    Made where a plan begins (a policy's `propose`) and handed to every function below."""

    state: State
    problem: Problem
    objective: Objective

    @classmethod
    def from_state(cls, state: State) -> PlanningInput:
        """Derive problem and objective from `state`; PlanError if it poses no problem (`problem_of`)."""
        return cls(state, problem_of(state), objective_of(state))

    def without_demand(self) -> PlanningInput:
        """Return the same moment without rows that ask for an accuracy of their own."""
        state = msgspec.structs.replace(self.state, demand=())
        return replace(self, state=state, problem=replace(self.problem, demand=()))
