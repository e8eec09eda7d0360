"""How far above the floor plans aim: bounds of the evaluation sample, and what they are worth where truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.random import Generator

from clover.planning.model.margin import (
    MOST_SHIFT,
    UNKNOWN,
    LiveLabels,
    keep_certain,
    lower_bounds,
    margin,
    shift_of,
    shifts_of,
)
from clover.planning.model.problem import accuracies
from clover.planning.model.shares import best_mix
from clover.profiling.chains import Answers, against, play, profile_of
from clover.profiling.score import wilson
from clover.types import AccuracyMeasurement, ChainPoint, FamilyProfile
from tests.support.profiles_fixture import profile

BELOW_BEST = 1.0
LEVEL = 0.05
NORMAL = NormalDist()


def sample(rng: Generator, truth: dict[str, float], alike: float, rows: int) -> dict[str, Answers]:
    """Answers to `rows` rows of variants of the accuracies `truth` (0..1), which find the same rows hard."""
    hard = rng.standard_normal(rows)
    found = {}
    for name, value in truth.items():
        sure = np.sqrt(alike) * hard + np.sqrt(1.0 - alike) * rng.standard_normal(rows)
        right = sure < NORMAL.inv_cdf(value)
        found[name] = Answers(-sure + 0.4 * rng.standard_normal(rows), right)
    return found


def profiled(held_out: dict[str, Answers]) -> FamilyProfile:
    """The accuracies of a profile of these answers."""
    best = max(held_out, key=lambda name: float(held_out[name].right.mean()))
    measured = []
    for name, own in held_out.items():
        low, high = wilson(int(own.right.sum()), len(own.right))
        measured.append(
            AccuracyMeasurement(
                variant=name,
                backend="eager",
                metric="top1",
                value=100.0 * float(own.right.mean()),
                low=low,
                high=high,
                samples=len(own.right),
                method="measured",
                against=against(own.right, held_out[best].right),
            )
        )
    return replace(profile(), accuracy=tuple(measured), backend=dict.fromkeys(held_out, "eager"))


def drawn(rng: Generator, count: int) -> tuple[dict[str, float], float, dict[str, float]]:
    """True accuracies of a family, how alike its variants answer, and what a row of each costs."""
    values = [*np.sort(rng.uniform(0.85, 0.93, count - 1)), rng.uniform(0.93, 0.95)]
    names = [f"v{at}" for at in range(count)]
    costs = np.cumprod(rng.uniform(1.5, 4.0, count))
    return dict(zip(names, values, strict=True)), rng.uniform(0.6, 0.95), dict(zip(names, costs, strict=True))


def missed(relative: bool, fixed: float | None = None, families: int = 400) -> float:
    """The part of all families in which the cheapest mix at the floor is really below it."""
    rng, below = np.random.default_rng(3), 0
    for _ in range(families):
        truth, alike, costs = drawn(rng, 4)
        found = profiled(sample(rng, truth, alike, 2000))
        values = accuracies(found)
        best = max(values, key=lambda name: values[name])
        floor = values[best] - BELOW_BEST if relative else 100.0 * truth["v3"] - 2.0 * BELOW_BEST
        aim = min(floor + (margin(found, floor, relative=relative) if fixed is None else fixed), values[best])
        mix = best_mix([-costs[name] for name in values], list(values.values()), [1.0] * 4, aim)
        assert mix is not None
        real = sum(100.0 * share * truth[name] for share, name in zip(mix, values, strict=True))
        below += real < (100.0 * truth[best] - BELOW_BEST if relative else floor) - 1e-9
    return below / families


def test_mixes_are_below_the_floor_as_seldom_as_is_stated() -> None:
    assert missed(relative=True) <= LEVEL
    assert missed(relative=False) <= LEVEL
    # A quarter of a point for everybody was too little for a sample of this size, if the floor is absolute.
    assert missed(relative=False, fixed=0.25) > 2.0 * LEVEL


def cheapest(
    points: Sequence[ChainPoint], rows: dict[str, Answers], costs: dict[str, float], least: float = 0.0
) -> float:
    """The accuracy on `rows` (percent) of the cheapest of `points` that were measured at `least` percent or more."""
    taken = min((point for point in points if point.accuracy >= least), key=lambda point: point.cost)
    return 100.0 * play(rows, costs, taken.chain, taken.thresholds).accuracy


def test_cascades_are_below_the_floor_as_seldom_as_is_stated() -> None:
    rng, below, before, families = np.random.default_rng(5), 0, 0, 40
    for _ in range(families):
        truth, alike, costs = drawn(rng, 3)
        held_out = sample(rng, truth, alike, 2000)
        cascade = profile_of(sample(rng, truth, alike, 2000), held_out, costs)
        found = replace(profiled(held_out), cascade=cascade)
        values = accuracies(found)
        best = max(values, key=lambda name: values[name])
        floor = values[best] - BELOW_BEST
        rows = sample(rng, truth, alike, 20_000)
        real_floor = 100.0 * float(rows[best].right.mean()) - BELOW_BEST
        kept = keep_certain(found, floor, relative=True).cascade
        assert kept is not None
        below += cheapest(kept.points, rows, costs) < real_floor
        before += cheapest(cascade.points, rows, costs, floor + 0.25) < real_floor
    assert below / families <= LEVEL
    assert before / families > LEVEL, "a quarter of a point for everybody is not enough for cascades"


def test_a_margin_is_the_most_that_any_mix_needs() -> None:
    rng = np.random.default_rng(9)
    for _ in range(50):
        truth, alike, _ = drawn(rng, 4)
        found = profiled(sample(rng, truth, alike, 2000))
        values, low = accuracies(found), lower_bounds(found, relative=True)
        floor = max(values.values()) - BELOW_BEST
        needed = margin(found, floor, relative=True)
        for shares in rng.dirichlet(np.full(4, 0.4), 200):
            reached = sum(share * values[name] for share, name in zip(shares, values, strict=True))
            bound = sum(share * low[name] for share, name in zip(shares, values, strict=True))
            assert bound >= floor - 1e-9 or reached <= floor + needed + 1e-9


def test_more_rows_make_a_smaller_margin_and_pairs_a_smaller_one_than_none() -> None:
    truth, rng = {"small": 0.92, "large": 0.94}, np.random.default_rng(1)
    few, many = (profiled(sample(rng, truth, 0.9, rows)) for rows in (1000, 16_000))
    floor = max(accuracies(many).values()) - BELOW_BEST
    assert margin(many, floor, relative=True) < 0.5 * margin(few, floor, relative=True)
    assert margin(many, floor, relative=True) < margin(many, floor, relative=False)
    unpaired = replace(many, accuracy=tuple(replace(item, against=None) for item in many.accuracy))
    assert margin(many, floor, relative=True) < margin(unpaired, floor, relative=True)


def test_a_best_variant_that_was_scored_on_fewer_rows_makes_the_margin_wider() -> None:
    whole = sample(np.random.default_rng(1), {"small": 0.92, "large": 0.94}, 0.9, 4000)
    some = {name: Answers(own.scores[:200], own.right[:200]) for name, own in whole.items()}
    found = profiled(some)
    more = profiled({"small": whole["small"]}).accuracy[0]
    cut = replace(found, accuracy=(replace(more, against=found.accuracy[0].against), found.accuracy[1]))
    assert lower_bounds(cut, relative=True) == pytest.approx(lower_bounds(found, relative=True))


def test_published_accuracies_keep_the_fixed_margin_and_a_single_variant_none() -> None:
    known = profile()
    published = replace(known, accuracy=tuple(replace(item, samples=0) for item in known.accuracy))
    values = accuracies(published)
    worst = min(values, key=lambda name: values[name])
    best = max(values.values())
    assert lower_bounds(published, relative=False)[worst] == values[worst] - UNKNOWN
    assert 0.0 < margin(published, best - BELOW_BEST, relative=True) <= UNKNOWN + 0.01
    alone = replace(known, accuracy=known.accuracy[-1:])
    assert margin(alone, alone.accuracy[0].value - BELOW_BEST, relative=True) == 0.0


@pytest.mark.parametrize("rows", [1, 100, 10_000])
def test_labels_move_an_estimate_by_as_much_as_they_show_and_never_up(rows: int) -> None:
    known = profile()
    values = accuracies(known)
    small = min(values, key=lambda name: values[name])
    worse = LiveLabels(rows, 0.85 * rows, 0.90 * rows)
    assert -5.0 <= shift_of(worse) <= 0.0
    better = {small: LiveLabels(rows, 0.95 * rows, 0.90 * rows)}
    assert shifts_of(known, better, relative=False) == {}
    assert shift_of(LiveLabels(10_000, 8500, 9000)) < shift_of(LiveLabels(100, 85, 90)) < -0.01
    assert shifts_of(known, {small: LiveLabels(10_000, 0.0, 9000.0)}, relative=False) == {small: -MOST_SHIFT}
    assert shift_of(LiveLabels(0, 0, 0)) == 0.0


def test_what_all_variants_lost_alike_leaves_a_relative_floor_alone() -> None:
    known = profile()
    values = accuracies(known)
    small, best = min(values, key=lambda name: values[name]), max(values, key=lambda name: values[name])
    labels = {name: LiveLabels(5000, (values[name] - 1.0) * 50.0, values[name] * 50.0) for name in (small, best)}
    assert shifts_of(known, labels, relative=True).get(small, 0.0) == pytest.approx(0.0, abs=0.06)
    alone = {small: labels[small]}
    lost = shifts_of(known, alone, relative=True)
    assert lost[small] < -0.4
    low, before = (lower_bounds(known, relative=True, shifts=shifts) for shifts in (lost, None))
    assert low[small] == before[small] + lost[small]
    assert low[best] == before[best] == values[best]
