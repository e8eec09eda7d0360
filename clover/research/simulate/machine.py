"""What a whole machine emits in a day under BASE and under the default, boundary by boundary (`simulate --machine`).

The runs are `replay.play`'s: the production controller through hours of a grid.  The boundaries are
nested: the workers' active energy; with the front end's, by the turns of its event loop that a request and each batch
take (`planning.model.queueing`); with the idle power of the whole machine.  All of it is modelled.  The controller's
own CPU time is in none of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clover.config import ControllerConfig
from clover.energy.cpu_power import CpuPower
from clover.errors import ConfigError
from clover.planning.model.queueing import TURNS, WAKE_S, cold
from clover.profiles import default_slo_ms
from clover.profiling.front_end import LIGHT_RATE
from clover.research.simulate import loads
from clover.research.simulate.fleet import Serving
from clover.research.simulate.flow import FleetModel
from clover.research.simulate.loads import Load
from clover.research.simulate.records import JOULES_PER_KWH, ReplayStep
from clover.research.simulate.replay import play
from clover.research.simulate.world import Case, Scheme, Trace, World
from clover.types import FamilyProfile

RATES = (20.0, 200.0)
"""Rows a second that are played, beside `loads.BASE_LOAD` of BASE's capacity, where none are given."""
HOT_PART = 0.1
"""Of what a turn of the front end costs at a light load: what it costs when turns follow each other
(`profiling.front_end`)."""
_DAY_S = 86_400.0


@dataclass(frozen=True)
class MachineDay:
    """Grams a day of one setting at `rate` rows a second, by part of the machine; accuracy in percent, milliseconds."""

    setting: str
    rate: float
    active_g: float
    front_end_g: float
    idle_g: float
    accuracy: float
    p95_ms: float

    @property
    def boundaries(self) -> tuple[float, float, float]:
        """Grams within each boundary: the workers' active energy; and the front end; and idle power: the machine."""
        return self.active_g, self.active_g + self.front_end_g, self.active_g + self.front_end_g + self.idle_g

    def saved(self, base: MachineDay) -> tuple[float, float, float]:
        """Return which part of the grams of `base` is saved within each boundary."""
        parts = [1.0 - mine / theirs for mine, theirs in zip(self.boundaries, base.boundaries, strict=True)]
        return parts[0], parts[1], parts[2]

    def between(self, base: MachineDay, power: CpuPower) -> tuple[float, float]:
        """Return the least and the most of the machine's part, if the processor's watts lie within their ranges."""

        def part(idle: float, core: float) -> float:
            mine, theirs = ((day.boundaries[1] * core, day.idle_g * idle) for day in (self, base))
            return 1.0 - sum(mine) / sum(theirs)

        return part(power.idle_range[1], power.core_range[0]), part(power.idle_range[0], power.core_range[1])


class FrontEnd:
    """Adds up the grams of the front end of a run at one rate (`replay.Judge`)."""

    def __init__(self, case: Case, slo_ms: float) -> None:
        profile = case.world.known.profile
        self.grams = 0.0
        self._per_j = case.world.rules.pue / JOULES_PER_KWH
        self._turn_j = turn_j(profile, case.load.mean(case.world.capacity))
        self._alone = case.world.model(slo_ms)
        self._with_turns = FleetModel(profile, slo_ms, turn_j=self._turn_j)

    def watts(self, serving: Serving) -> float:
        """Return the watts above idle: a turn to read each row, and those that batches take, as the planner has it."""
        asked = (serving.configuration, serving.routing, serving.rate)
        batches_w = self._with_turns.flow(*asked).active_w - self._alone.flow(*asked).active_w
        return self._turn_j * serving.rate + batches_w

    def record_routing(self, at_s: float, before: Serving, after: Serving) -> None:
        """Do nothing: see `closed`."""

    def record_step(self, at_s: float, step: ReplayStep, serving: Serving, lost: Sequence[str]) -> None:
        """Add the grams of a step."""
        self.grams += self.watts(serving) * step.seconds * step.g_per_kwh * self._per_j


def turn_j(profile: FamilyProfile, rate: float) -> float:
    """Return joules of a turn of the front end's event loop at `rate` rows a second; 0 if the profile has none."""
    least = HOT_PART * cold(1.0 / (TURNS * LIGHT_RATE), WAKE_S)
    return profile.turn_j * max(cold(1.0 / (TURNS * rate), WAKE_S), least)


def loads_of(world: World, rate: float | None) -> list[Load]:
    """Return the loads to play: `rate` rows a second, or else `RATES` and a part of BASE's capacity.  Those that BASE
    cannot serve are left out; ConfigError if BASE cannot serve `rate`."""
    if rate is not None and not 0.0 < rate < world.capacity:
        raise ConfigError(f"--rate is above 0 and below BASE's capacity of {world.capacity:.4g} rows/s, not {rate:g}")
    given = RATES if rate is None else (rate,)
    shapes = [loads.parse(f"constant:{each}/s") for each in given if each < world.capacity]
    return shapes + ([loads.parse(f"constant:{loads.BASE_LOAD}")] if rate is None else [])


def days(world: World, trace: Trace, load: Load, slo_ms: float | None) -> list[MachineDay]:
    """Return BASE at a load, the default, and the default with that SLO if one is given, BASE first."""
    policy = ControllerConfig().policy
    default = Scheme("default", policy, cascade=None, resident=True)  # as a server without flags has it
    cases = [Case(world, trace, load, Scheme("BASE", "base"), 0), Case(world, trace, load, default, 0)]
    if slo_ms is not None:
        given = Scheme(f"--slo-ms {slo_ms:g}", policy, cascade=None, resident=True)
        cases.append(Case(world, trace, load, given, 0, slo_ms=slo_ms))
    return [_play_day(case) for case in cases]


def _play_day(case: Case) -> MachineDay:
    profile = case.world.known.profile
    front = FrontEnd(case, case.slo_ms if case.slo_ms is not None else default_slo_ms(profile))
    run = play(case, front)
    to_a_day = _DAY_S / sum(step.seconds for step in run.steps)
    return MachineDay(
        setting=case.scheme.name,
        rate=case.load.mean(case.world.capacity),
        active_g=run.sums.active_grams * to_a_day,
        front_end_g=front.grams * to_a_day,
        idle_g=(run.sums.grams - run.sums.active_grams) * to_a_day,
        accuracy=run.sums.accuracy,
        p95_ms=run.sums.p95_ms,
    )
