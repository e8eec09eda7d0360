"""`--scenario day`: a day under an accuracy budget, spent at random, by mixes of variants and by cascades.

Every family goes through every trace with the same budget over the hours played, under

    base                  BASE
    clover                the paper's annealing, which mixes variants at random, at its own L
    budget                our budget over mixes: rows meet variants by quota
    static                the best fixed mix at the budget
    budget+cascade        our budget over cascades: thresholds follow grid and budget, configurations slowly
    budget:flat+cascade   the same without the grid's intensity: what a static cascade at the budget could save
    static+cascade >= A   the best static cascade (one configuration, one chain, the same thresholds all day) of at
                          least the accuracy A that `budget+cascade` reached
    budget:online+cascade our budget over cascades without a forecast, by an online primal-dual rule

The three before the last show what moving thresholds are worth, the others what cascades and forecasts are worth.  If
no floor is given, it is twice the budget below the best variant, without a margin: what one hour saves must be free to
be spent in another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from clover.errors import ConfigError
from clover.planning.model.problem import accuracies
from clover.research.simulate import world
from clover.research.simulate.families import Known
from clover.research.simulate.loads import Load
from clover.research.simulate.records import Run, RunInput
from clover.research.simulate.work import OnProgress, execute
from clover.research.simulate.world import Case, Rules, Scheme, SimulatedMachine, Trace, World

BUDGET = 0.5
LAMBDA = 0.1
"""The artifact's, for the paper's own policy."""
_FLOOR = 2.0  # times the budget
STEERED = "budget+cascade"


@dataclass(frozen=True)
class DayOptions:
    """What the command line asks of the scenario."""

    machine: SimulatedMachine
    known: Sequence[Known]
    traces: Sequence[Trace]
    load: Load
    rules: Rules
    seeds: int


class Day:
    """The scenario: its runs, and the notes that a report prints beside them."""

    def __init__(self, asked: DayOptions) -> None:
        bare = [item.profile.family for item in asked.known if item.profile.cascade is None]
        if bare:
            raise ConfigError(f"--scenario day plays cascades, and {', '.join(bare)} has no profile of any")
        rules = asked.rules
        self._asked = asked
        self._budget = BUDGET if rules.accuracy_budget is None else rules.accuracy_budget
        self.cells = [
            (World(asked.machine, item, self._rules(item, trace)), trace)
            for item in asked.known
            for trace in asked.traces
        ]
        self.count = len(self.cells) * asked.seeds * 8
        self.inputs: list[RunInput] = world.inputs([own for own, _ in self.cells], asked.traces, asked.load)
        own = sorted({f"{item.profile.family}: {item.confidence}" for item in asked.known if item.confidence})
        floor = "twice that below the best variant" if rules.accuracy_floor is None else f"{rules.accuracy_floor:g} %"
        self.labels = (
            f"scenario day: a budget of {self._budget:g} points over the hours played, the floor at {floor}",
            "budget, static: mixes, rows meet variants by quota; +cascade: rows go on to another by their score",
            "budget:flat: as if the grid never moved; static+cascade >= A: one chain and thresholds all day",
            "accuracies of cascades were counted on held-out rows, thresholds chosen on others",
            *own,
        )

    def _rules(self, known: Known, trace: Trace) -> Rules:
        rules = self._asked.rules
        best = max(accuracies(known.profile).values())
        return replace(
            rules,
            accuracy_floor=best - _FLOOR * self._budget if rules.accuracy_floor is None else rules.accuracy_floor,
            accuracy_margin=0.0,
            accuracy_budget=self._budget,
            budget_horizon_s=trace.hours * 3600.0,
        )

    def play(self, on_progress: OnProgress) -> list[Run]:
        """Play every run and return them; `on_progress` is called as runs are done."""
        return [run for cell, trace in self.cells for run in self._cell(cell, trace, on_progress)]

    def _cell(self, world: World, trace: Trace, on_progress: OnProgress) -> list[Run]:
        def played(*schemes: Scheme) -> list[Run]:
            seeds = range(self._asked.seeds)
            cases = [Case(world, trace, self._asked.load, item, seed) for item in schemes for seed in seeds]
            return execute(cases, on_progress)

        runs = played(
            Scheme("base", "base"),
            Scheme("clover", "clover", lam=LAMBDA if world.rules.lam is None else world.rules.lam),
            Scheme("budget", "budget"),
            Scheme("static", "static"),
            Scheme(STEERED, "budget", cascade=True),
            Scheme("budget:flat+cascade", "budget:flat", cascade=True),
        )
        reached = [run.sums.accuracy for run in runs if run.policy == STEERED]
        best = fixed(sum(reached) / len(reached))
        return [*runs, *played(best, Scheme("budget:online+cascade", "budget:online", cascade=True))]


def fixed(accuracy: float) -> Scheme:
    """Return the best static cascade of at least `accuracy` percent, to a hundredth of a point.

    Energy alone is minimised under that floor, which no intensity enters; so it stays as long as the load does."""
    floor = math.floor(accuracy * 100.0) / 100.0
    return Scheme(
        f"static+cascade >= {floor:.2f}", "objective", form="floor", accuracy_floor=floor, beside=STEERED, cascade=True
    )
