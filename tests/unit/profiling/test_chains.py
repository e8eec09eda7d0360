"""Chains on rows whose answers are known: against asking row by row, and what is chosen on which rows."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.profiling.chains import POINTS, Answers, common_rows, every_chain, front, levels, play, profile_of, thin
from clover.profiling.pareto import best_of, cascades

NAMES = ("small", "medium", "large")
COSTS = {"small": 1.0, "medium": 4.0, "large": 20.0}


def rows(seed: int, count: int, skill: tuple[float, ...] = (0.8, 0.9, 0.95)) -> dict[str, Answers]:
    """Variants that are surer where they are right."""
    rng = np.random.default_rng(seed)
    hard = rng.random(count)
    found = {}
    for name, part in zip(NAMES, skill, strict=True):
        right = hard < part + 0.1 * rng.standard_normal(count)
        scores = np.clip(0.5 + 0.4 * (part - hard) + 0.1 * rng.standard_normal(count), 0.0, 1.0)
        found[name] = Answers(scores, right)
    return found


@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 30),
    chain=st.sampled_from([names for n in (1, 2, 3) for names in itertools.combinations(NAMES, n)]),
    data=st.data(),
)
def test_a_chain_is_what_asking_row_by_row_gives(seed: int, count: int, chain: tuple[str, ...], data: object) -> None:
    answers = rows(seed, count)
    thresholds = tuple(data.draw(st.floats(0.0, 1.0)) for _ in chain[1:])  # type: ignore[attr-defined]
    right, asked, cost = 0, [0] * len(chain), 0.0
    for row in range(count):
        for stage, name in enumerate(chain):
            asked[stage] += 1
            cost += COSTS[name]
            if stage == len(thresholds) or answers[name].scores[row] >= thresholds[stage]:
                right += bool(answers[name].right[row])
                break
    found = play(answers, COSTS, chain, thresholds)
    assert found.accuracy == pytest.approx(right / count)
    assert found.reach == pytest.approx([part / count for part in asked])
    assert found.cost == pytest.approx(cost / count)


@pytest.mark.slow
@given(seed=st.integers(0, 10_000), count=st.integers(1, 30), tenths=st.booleans(), blank=st.floats(0.0, 0.5))
def test_all_thresholds_at_once_are_what_each_gives(seed: int, count: int, tenths: bool, blank: float) -> None:
    answers = rows(seed, count)
    for at, (name, own) in enumerate(answers.items()):
        scores = own.scores.round(1) if tenths else own.scores  # many ties
        lost = np.random.default_rng(at).random(count) < blank
        answers[name] = Answers(np.where(lost, np.nan, scores), own.right)
    found = list(every_chain(answers, COSTS))
    assert len({item.chain for item in found if len(item.chain) == 1}) == 3
    for item in found[:: max(1, len(found) // 50)]:
        one = play(answers, COSTS, item.chain, item.thresholds)
        assert item.accuracy == pytest.approx(one.accuracy)
        assert item.reach == pytest.approx(one.reach)
        assert item.cost == pytest.approx(one.cost)


def test_a_score_that_is_no_number_goes_on() -> None:
    answers = {
        "small": Answers(np.array([np.nan, 0.9]), np.array([False, True])),
        "large": Answers(np.array([0.5, 0.5]), np.array([True, False])),
    }
    found = play(answers, COSTS, ("small", "large"), (0.5,))
    assert (found.accuracy, found.reach) == (1.0, (1.0, 0.5))


def test_what_is_chosen_is_chosen_on_calibration_rows() -> None:
    """Other held-out rows change what is told of the points, and neither chains nor thresholds."""
    calibration = rows(1, 2000)
    one, other = (profile_of(calibration, rows(seed, 2000), COSTS) for seed in (2, 3))
    assert [(p.chain, p.thresholds) for p in one.points] == [(p.chain, p.thresholds) for p in other.points]
    assert [p.accuracy for p in one.points] != [p.accuracy for p in other.points]
    upside_down = profile_of(rows(1, 2000, (0.95, 0.9, 0.8)), rows(2, 2000), COSTS)
    assert {p.chain for p in upside_down.points} == {("small",)}, "there nothing dearer is better"


def test_what_is_told_is_counted_on_held_out_rows() -> None:
    held_out = rows(2, 1500)
    found = profile_of(rows(1, 2000), held_out, COSTS)
    assert (found.calibration_rows, found.held_out_rows) == (2000, 1500)
    for point in found.points:
        own = play(held_out, {name: cost / 20.0 for name, cost in COSTS.items()}, point.chain, point.thresholds)
        assert point.accuracy == pytest.approx(100 * own.accuracy)
        assert point.low < point.accuracy < point.high
        assert point.reach == own.reach
        assert point.cost == pytest.approx(own.cost)
        ended = [here - later for here, later in zip(point.reach, (*point.reach[1:], 0.0), strict=True)]
        assert sum(part * end for part, end in zip(ended, point.ends, strict=True)) == pytest.approx(point.accuracy)
    assert any(len(point.chain) > 1 for point in found.points)


def test_rows_that_go_on_are_those_a_variant_is_worse_at() -> None:
    found = profile_of(rows(1, 4000), rows(2, 4000), COSTS)
    chained = [point for point in found.points if len(point.chain) > 1 and point.reach[1] > 0.05]
    assert chained
    assert all(point.cut[0] < point.ends[0] for point in chained)
    assert all(point.cut[-1] == point.ends[-1] for point in found.points)


def test_the_front_is_one() -> None:
    answers = rows(4, 800)
    found = front(every_chain(answers, COSTS))
    assert all(a.cost < b.cost and a.accuracy < b.accuracy for a, b in itertools.pairwise(found))
    for item in every_chain(answers, COSTS):
        assert any(best.cost <= item.cost and best.accuracy >= item.accuracy for best in found)


def test_a_dearer_variant_never_comes_before_a_cheaper_one() -> None:
    costs = {"small": 5.0, "medium": 4.0, "large": 20.0}
    assert all(chain.chain[:2] != ("small", "medium") for chain in every_chain(rows(1, 50), costs))


def test_thinning_keeps_both_ends() -> None:
    whole = front(every_chain(rows(4, 4000), COSTS))
    assert len(whole) > POINTS
    few = thin(whole)
    assert len(few) <= POINTS
    assert (few[0], few[-1]) == (whole[0], whole[-1])
    assert thin(whole[:3]) == whole[:3]


def test_thresholds_are_float32_as_scores_are() -> None:
    found = levels(np.random.default_rng(1).random(1000))
    assert found == sorted(set(found))
    assert all(float(np.float32(value)) == value for value in found)


def test_only_rows_that_all_saw_are_compared() -> None:
    answers = rows(1, 20)
    answers["large"] = Answers(answers["large"].scores[:7], answers["large"].right[:7])
    assert {len(own.right) for own in common_rows(answers).values()} == {7}


def test_people_see_a_table_and_a_plot() -> None:
    lines = cascades(profile_of(rows(1, 2000), rows(2, 2000), COSTS), 120)
    assert "2000 calibration rows" in lines[0]
    assert sum(" > " in line for line in lines) > 3
    assert sum("|" in line for line in lines) == 12


def test_points_that_the_table_leaves_out_are_in_no_plot_either() -> None:
    found = profile_of(rows(1, 2000), rows(2, 2000), COSTS)
    best = best_of(found.points)
    last = best[-1]
    worse = msgspec.structs.replace(last, cost=2.0 * last.cost, accuracy=last.accuracy - 1.0)
    lines = cascades(msgspec.structs.replace(found, points=(*found.points, worse)), 120)
    left_out = 1 + len(found.points) - len(best)
    assert f" ({left_out} {'is' if left_out == 1 else 'are'} no better than a cheaper one)" in lines[1]
    assert lines[-1].endswith(f"cost {100 * last.cost:.1f} %")
    alone = cascades(msgspec.structs.replace(found, points=(last, worse)), 120)
    assert "1 of 2 points (1 is no better than a cheaper one)" in alone[1]
    assert not any("|" in line for line in alone)
