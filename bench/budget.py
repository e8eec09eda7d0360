"""An accuracy budget spent over a trace of carbon intensities, hour by hour, through the policy that serves it.

    python -m bench.budget TRACE.csv [--forecast FILE] [--horizon-h 8760] [--load constant|diurnal] [--loss 0.5]
                           [--family fashion-like|a100] [--hours N] [--json FILE]

Every hour the policy `budget` is asked for a plan, with the forecast that was to be had then and with what was served
so far; the hour is then served as that plan predicts, at the hour's true intensity.  No server runs: accuracy and
active joules are those of the planner's model on a synthetic profile.  Forecasts:

`perfect`      what will be              `seasonal`   a typical day of the last two weeks (`planning.budget.forecast`)
`persistence`  as it is now              `provider`   --forecast FILE: what it says of every hour to come (its rows are
                                         day-ahead values, so a horizon beyond a day sees more than a provider gives)
`provider 48h` the same file for the next 48 hours, seasonal beyond

Beside each: the best fixed mix (`static:mix`) at the accuracy that the run reached, at the same hours and load, and
`limit`: the exact optimum of the relaxation over all hours, with frontiers of the same planner, at that accuracy.
`flat` is the same replay with the trace's mean in every hour.  Hours without a value are served at the value that
fills the gap (the same hour of the day before), and count.  Load: rates in eight steps over day and week.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench.common import show, write_json
from bench.horizon import Hour, spend
from clover.carbon.layouts import parse_table, read_file
from clover.planning.budget.forecast import HOUR_S, ForecastInput, History, group_hours, outlook
from clover.planning.budget.frontiers import frontier
from clover.planning.budget.target import GRAMS_PER_J
from clover.planning.model.frontier import FrontierPoint
from clover.planning.model.objective import PlanningInput
from clover.planning.model.problem import accuracies
from clover.policies import build
from clover.types import Assignment, ObjectiveConfig, Plan, Reading, State
from tests.support.mig_fixture import a100s, mig_profile
from tests.support.profiles_fixture import cpu, profile

Floats = NDArray[np.float64]

FASHION = {"tiny": (87.7, 0.3), "small": (89.4, 0.6), "medium": (90.5, 1.2), "large": (91.4, 2.5), "huge": (92.3, 5.0)}
EFFICIENTNET = {"b1": (78.382, 1.2), "b3": (81.528, 2.3), "b5": (83.776, 4.9), "b7": (84.582, 9.0)}
FLOOR_BELOW = 2.0
"""Points below the best variant at which the floor lies; plans keep a margin of `MARGIN` above it."""
MARGIN = 0.25
PROVIDER_H = 48


@dataclass
class Result:
    """One replay: points of accuracy and grams of CO2e, over all rows."""

    what: str
    accuracy: float
    off_budget: float
    lowest: float
    grams: float
    saving_over_static: float
    saving_limit: float
    changes: int
    infeasible: int
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    """Replay; print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.budget", description=__doc__.split("\n")[0])
    parser.add_argument("trace", type=Path, help="intensities, one a row")
    parser.add_argument("--forecast", type=Path, help="what a provider foretold of the same hours")
    parser.add_argument("--horizon-h", type=float, default=8760.0, help="hours of a budget [8760]")
    parser.add_argument("--load", choices=("constant", "diurnal"), default="constant")
    parser.add_argument("--loss", type=float, default=0.5, help="points below the best variant on average [0.5]")
    parser.add_argument("--family", choices=("fashion-like", "a100"), default="fashion-like")
    parser.add_argument("--hours", type=int, default=0, help="of the trace; 0 takes all")
    parser.add_argument("--only", nargs="*", default=[], help="these forecasts only")
    parser.add_argument("--json", default="", help="write the figures there")
    given = parser.parse_args(argv)
    first, truth = hours_in(given.trace)
    truth = truth[: given.hours or len(truth)]
    told = None
    if given.forecast:
        other, values = hours_in(given.forecast)
        told = np.full(len(truth), np.nan)
        shift = other - first
        for at in range(len(truth)):
            if 0 <= at - shift < len(values):
                told[at] = values[at - shift]
    replay = Replay(given.family, given.load, given.loss, given.horizon_h, first, truth, told)
    names = ["perfect", "seasonal", "persistence", *(["provider", "provider 48h"] if told is not None else [])]
    results = [replay.run(name) for name in names if not given.only or name in given.only]
    if not given.only or "flat" in given.only:
        flat = Replay(given.family, given.load, given.loss, given.horizon_h, first, np.full_like(truth, truth.mean()))
        results.append(flat.run("seasonal", "flat"))
    show(
        f"{given.trace.name}: {len(truth)} h, horizon {given.horizon_h:g} h, {given.load} load, {given.family}, budget "
        f"{given.loss:g} points: {replay.target:.3f} %",
        ["forecast", "accuracy %", "off the budget", "lowest hour %", "kg", "saved over static %", "limit %",
         "changes", "infeasible", "s"],
        [
            [r.what, f"{r.accuracy:.4f}", f"{r.off_budget:+.4f}", f"{r.lowest:.3f}", f"{r.grams / 1e3:.4g}",
             f"{100 * r.saving_over_static:.2f}", f"{100 * r.saving_limit:.2f}", r.changes, r.infeasible,
             f"{r.seconds:.0f}"]
            for r in results
        ],
    )  # fmt: skip
    write_json(
        given.json, {"arguments": {k: str(v) for k, v in vars(given).items()}, "runs": [asdict(r) for r in results]}
    )
    return 0


def hours_in(path: Path) -> tuple[int, Floats]:
    """Return the first hour of a file (hours since 1970) and its values, gaps filled."""
    history = History()
    rows = parse_table(read_file(path)).rows
    for row in rows:
        value = row.g if row.g is not None else row.forecast_g
        history.record(row.at_s, math.nan if value is None else value)
    values = history.hourly(math.floor(rows[-1].at_s / HOUR_S))
    return math.floor(rows[-1].at_s / HOUR_S) + 1 - len(values), values


class Replay:
    """A family, its load and a trace."""

    def __init__(
        self,
        family: str,
        load: str,
        loss: float,
        horizon_h: float,
        first: int,
        truth: Floats,
        told: Floats | None = None,
    ) -> None:
        gpu = family == "a100"
        measured = mig_profile(EFFICIENTNET) if gpu else profile((1, 2), FASHION)
        best = max(accuracies(measured).values())
        self.first, self.truth, self.told = first, truth, told
        self.horizon = round(horizon_h)
        self.target = best - loss
        self.rates = rates_of(load, first, len(truth), 300.0 if gpu else 100.0)
        self.state = State(
            family="toy",
            grid_s=0.0,
            intensity=Reading(g_per_kwh=250.0, at_s=0.0, provider="trace"),
            arrival_rate=1.0,
            p95_ms=None,
            queue_rows=0,
            objective=ObjectiveConfig(
                form="paper",
                slo_ms=60.0 if gpu else 30.0,
                accuracy_floor=best - FLOOR_BELOW,
                accuracy_margin=MARGIN,
                lam=None,
                reference_g_per_kwh=250.0,
                accuracy_budget=loss,
                budget_horizon_s=self.horizon * HOUR_S,
            ),
            profile=measured,
            devices=a100s(1) if gpu else (cpu(2),),
            running=(),
            routing=None,
        )

    def run(self, forecast: str, name: str = "") -> Result:
        """Return all hours with one kind of forecast."""
        started = time.perf_counter()
        policy = build("budget")
        intensities, loads = History(), History()
        running: tuple[Assignment, ...] = ()
        accuracy, energy = np.zeros(len(self.truth)), np.zeros(len(self.truth))
        changes = infeasible = 0
        for at, (g_per_kwh, rate) in enumerate(zip(self.truth, self.rates, strict=True)):
            start = at - at % self.horizon
            if at == start:
                served_rows = served = 0.0
            now_s = (self.first + at) * HOUR_S
            intensities.record(now_s, g_per_kwh)
            loads.record(now_s, rate)
            end = min(start + self.horizon, len(self.truth))
            if forecast == "perfect":
                steps = group_hours(np.full(end - at, HOUR_S), self.truth[at:end], self.rates[at:end] * HOUR_S)
                label = "perfect"
            else:
                told = None
                if forecast.startswith("provider") and self.told is not None:
                    told = self.told[at : end if forecast == "provider" else min(end, at + PROVIDER_H)]
                known = ForecastInput(intensities, loads, float(g_per_kwh), float(rate), provider=told)
                until_s = (self.first + end) * HOUR_S
                seen = outlook(known, now_s=now_s, until_s=until_s, seasons=forecast != "persistence")
                steps, label = seen.steps, seen.label
            plan = policy.propose(
                msgspec.structs.replace(
                    self.state,
                    grid_s=now_s,
                    intensity=Reading(g_per_kwh=float(g_per_kwh), at_s=now_s, provider="trace"),
                    arrival_rate=float(rate),
                    running=running,
                    ahead=steps,
                    forecast=label,
                    served_rows=served_rows,
                    served_accuracy_rows=served,
                )
            )
            changes += bool(running) and set(plan.deployment) != set(running)
            infeasible += not plan.feasible
            running = plan.deployment
            accuracy[at], energy[at] = plan.prediction.accuracy, plan.prediction.energy_j_per_row
            served_rows += rate * HOUR_S
            served += rate * HOUR_S * accuracy[at]
        rows = self.rates * HOUR_S
        mean = float((rows * accuracy).sum() / rows.sum())
        grams = float((rows * energy * self.truth).sum() * GRAMS_PER_J)
        static = self.static(mean)
        return Result(
            what=name or forecast,
            accuracy=mean,
            off_budget=mean - self.target,
            lowest=float(accuracy.min()),
            grams=grams,
            saving_over_static=1.0 - grams / static,
            saving_limit=1.0 - self.limit(mean) / static,
            changes=changes,
            infeasible=infeasible,
            seconds=time.perf_counter() - started,
        )

    def static(self, accuracy: float) -> float:
        """Return grams of the best fixed mix at that accuracy, planned for each rate."""
        best = max(accuracies(self.state.profile).values())
        config = msgspec.structs.replace(self.state.objective, accuracy_budget=best - accuracy)
        plans: dict[float, Plan] = {}
        for rate in sorted(set(self.rates.tolist())):
            state = msgspec.structs.replace(self.state, objective=config, arrival_rate=rate)
            plans[rate] = build("static:mix").propose(state)
        joules = np.array([plans[rate].prediction.energy_j_per_row for rate in self.rates.tolist()])
        return float((self.rates * HOUR_S * joules * self.truth).sum() * GRAMS_PER_J)

    def limit(self, accuracy: float) -> float:
        """Return grams of the exact optimum over all hours at that accuracy, each hour anywhere on its frontier's
        hull."""
        given = PlanningInput.from_state(self.state)
        shapes = {
            rate: [plan.point for plan in frontier(given.problem, given.objective, rate, seed=self.state.seed)]
            for rate in set(self.rates.tolist())
        }
        hours = [
            Hour(
                rows=rate * HOUR_S,
                points=tuple(FrontierPoint(accuracy=p.accuracy, grams=p.grams * g * GRAMS_PER_J) for p in shapes[rate]),
            )
            for g, rate in zip(self.truth.tolist(), self.rates.tolist(), strict=True)
        ]
        return spend(hours, accuracy - 1e-9).grams


def rates_of(load: str, first: int, count: int, peak: float) -> Floats:
    """Return rows a second of each hour: `peak`, or a day with its maximum at 20:00 UTC and a quieter weekend, in eight
    steps from a third of `peak` up."""
    if load == "constant":
        return np.full(count, peak)
    hour = first + np.arange(count)
    day = 0.5 + 0.5 * np.cos((hour % 24 - 20) / 24 * 2 * np.pi)
    weekend = (hour // 24 + 3) % 7 >= 5
    part = np.round(7 * day * np.where(weekend, 0.7, 1.0)) / 7
    rates: Floats = peak * (1.0 + 2.0 * part) / 3.0
    return rates


if __name__ == "__main__":
    raise SystemExit(main())
