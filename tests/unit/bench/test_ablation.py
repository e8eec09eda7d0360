"""What the ablation says of a mechanism, and that what it takes away is there."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from bench import ablation
from bench.ablation import FIGURES, MECHANISMS, SCENARIOS, Figure, Outcome

OUTCOME = Outcome(grams=100.0, accuracy=84.0, worst=1.0, above=0, minded=0, changes=3)


def steps(*late: float) -> list[Any]:
    return [SimpleNamespace(rows=10.0, late=part) for part in late]


def test_the_worst_ten_minutes_are_weighed_by_rows_and_found_wherever_they_lie() -> None:
    assert ablation.worst_late(steps(0.0, 0.1, 0.3, 0.0), 2) == pytest.approx(20.0)
    uneven: list[Any] = [SimpleNamespace(rows=90.0, late=0.0), *steps(1.0)]
    assert ablation.worst_late(uneven, 2) == pytest.approx(10.0)
    assert ablation.worst_late(steps(0.5), 10) == pytest.approx(50.0), "a run shorter than ten minutes is all of them"


def test_grams_are_compared_at_equal_accuracy() -> None:
    slope = ablation.slope_of(replace(OUTCOME, grams=110.0, accuracy=84.1), OUTCOME)
    assert slope == pytest.approx(1.0), "a tenth of the grams for a tenth of a point"
    cheaper = replace(OUTCOME, grams=90.0, accuracy=83.9)
    found = ablation.figures("a", [OUTCOME], [cheaper], [slope])
    assert found["grams"].change == pytest.approx(0.0), "what it saves, it owes to its accuracy"
    assert ablation.slope_of(OUTCOME, OUTCOME) == 0.0


def test_a_figure_stands_beside_the_spread_of_the_runs_with_everything() -> None:
    base = [replace(OUTCOME, worst=1.0), replace(OUTCOME, worst=3.0)]
    without = [replace(OUTCOME, worst=2.0), replace(OUTCOME, worst=8.0)]
    found = ablation.figures("a", base, without, [0.0, 0.0])["worst"]
    assert (found.change, found.spread, found.beyond) == (3.0, 2.0, 1.0)


def test_the_scenario_counts_in_which_a_figure_is_worst_beside_its_spread() -> None:
    calm = dict.fromkeys(FIGURES, Figure(1.0, 0.0, "calm"))
    noisy = dict.fromkeys(FIGURES, Figure(5.0, 9.0, "noisy"))
    assert {figure.scenario for figure in ablation.worst_of([noisy, calm]).values()} == {"calm"}


def test_a_mechanism_is_identical_within_the_spread_or_shows_what_it_is_for() -> None:
    inside = dict.fromkeys(FIGURES, Figure(1.0, 1.0, "a"))
    assert ablation.verdict(len(SCENARIOS), inside) == "identical"
    assert ablation.verdict(2, inside) == "within the spread"
    assert ablation.verdict(2, inside | {"above": Figure(2.0, 1.0, "a")}) == "shows: above"


def test_what_is_taken_away_is_part_of_the_product() -> None:
    for parts in MECHANISMS.values():
        for owner, name, _ in parts:
            assert hasattr(owner, name), f"{owner} has no {name}"


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS[1:], ids=lambda scenario: scenario.name)
def test_every_scenario_is_played_on_the_synthetic_grid(scenario: ablation.Scenario) -> None:
    outcome = ablation.play(ablation.Job(replace(scenario, hours=0.25), seed=0), "synthetic", "")
    assert outcome.grams > 0.0
    assert 80.0 < outcome.accuracy < 100.0
