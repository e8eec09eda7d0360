"""Fronts of chains: against plain Python a row at a time, and who chooses what on which rows."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.planning import cascade
from clover.profiling import chains, temperature
from clover.profiling.chains import Split
from clover.profiling.fronts import alone, draw, front_plot, front_table, scatter
from clover.profiling.observed import Costs, Observed, at_costs, costs_of, observed_of, read, write
from clover.types import CascadeProfile, ConfidenceSpec
from tests.unit import profiles_fixture

NAMES = ("small", "medium", "large")
JOULES = (1.0, 2.5, 9.0)


def family(rows: int, seed: int, variants: int = 3) -> Split:
    """Variant v is right, mostly, on rows whose difficulty is below its skill, and knows it, mostly."""
    generator = np.random.default_rng(seed)
    difficulty = generator.random(rows)
    skill = np.linspace(0.75, 0.95, variants)[:, None]
    chance = 1.0 / (1.0 + np.exp(-12.0 * (skill - difficulty)))
    right = generator.random((variants, rows)) < chance
    scores = np.clip(chance + 0.1 * generator.standard_normal(chance.shape), 0, 1).astype(np.float32)
    return Split(scores, right)


def by_hand(split: Split, chain: Any, thresholds: Any) -> tuple[float, list[float]]:
    """Accuracy and reach, a row at a time."""
    correct, asked = 0, [0] * len(chain)
    for row in range(split.rows):
        for stage, variant in enumerate(chain):
            asked[stage] += 1
            if stage == len(chain) - 1 or not split.scores[variant][row] < thresholds[stage]:
                correct += bool(split.right[variant][row])
                break
    return correct / split.rows, [count / split.rows for count in asked]


@st.composite
def splits(draw: Any) -> Split:
    variants, rows = draw(st.integers(1, 4)), draw(st.integers(1, 30))
    coarse = st.integers(0, 6).map(lambda tenth: tenth / 6)  # many ties
    scores = [[draw(coarse) for _ in range(rows)] for _ in range(variants)]
    right = [[draw(st.booleans()) for _ in range(rows)] for _ in range(variants)]
    return Split(np.array(scores, np.float32), np.array(right, np.bool_))


@settings(max_examples=40, deadline=None)
@given(splits(), st.data())
def test_candidates_are_what_rows_do_one_by_one(split: Split, data: Any) -> None:
    joules = data.draw(st.lists(st.floats(0.1, 10), min_size=len(split.scores), max_size=len(split.scores)))
    found = chains.candidates(split, joules, count=4)
    assert {choice.chain for choice in found} == set(chains.orders(joules, list(split.right.mean(axis=1))))
    for choice in found:
        accuracy, reach = by_hand(split, choice.chain, choice.thresholds)
        assert choice.accuracy == accuracy
        energies = [part * joules[v] for part, v in zip(reach, choice.chain, strict=True)]
        assert choice.energy_j == pytest.approx(sum(energies))


@settings(max_examples=40, deadline=None)
@given(splits(), st.data())
def test_points_are_what_held_out_rows_do_one_by_one(split: Split, data: Any) -> None:
    variants = range(len(split.scores))
    chain = tuple(data.draw(st.permutations(list(variants)))[:3])
    limits = tuple(float(np.float32(data.draw(st.floats(0, 1.2)))) for _ in chain[1:])
    joules, names = [1.0 + v for v in variants], [str(v) for v in variants]
    point = chains.judged(split, chains.Choice(chain, limits, 0.0, 0.0), names, joules, best=0)
    accuracy, reach = by_hand(split, chain, limits)
    assert point.accuracy == pytest.approx(100 * accuracy)
    assert point.reach == pytest.approx(tuple(reach))
    assert point.reach[0] == 1.0
    assert list(point.reach) == sorted(point.reach, reverse=True)
    assert point.low <= point.accuracy + 1e-9
    assert point.accuracy <= point.high + 1e-9
    assert point.difference == pytest.approx(100 * (accuracy - split.right[0].mean()))
    assert point.difference_low <= point.difference <= point.difference_high
    assert point.energy == pytest.approx(cascade.expected_energy(point.reach, [joules[v] for v in chain]) / joules[0])


def test_a_chain_of_one_is_that_variant() -> None:
    split = family(500, 1)
    for variant, name in enumerate(NAMES):
        point = chains.judged(split, chains.Choice((variant,), (), 0.0, 0.0), NAMES, JOULES, best=2)
        assert (point.chain, point.thresholds, point.reach) == ((name,), (), (1.0,))
        assert point.accuracy == 100 * split.right[variant].mean()
        assert point.energy == JOULES[variant] / JOULES[2]
    assert point.difference == point.difference_low == point.difference_high == 0.0


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30))
def test_a_front_is_a_front(points: list[tuple[int, int]]) -> None:
    accuracy, energy = [float(a) for a, _ in points], [float(e) for _, e in points]
    kept = chains.front(accuracy, energy)
    for before, after in itertools.pairwise(kept):
        assert energy[before] < energy[after]
        assert accuracy[before] < accuracy[after]
    for a, e in zip(accuracy, energy, strict=True):
        assert any(accuracy[i] >= a and energy[i] <= e for i in kept), "whatever is left out is beaten"


def test_thinning_keeps_the_ends_and_the_corner() -> None:
    accuracy, energy = [80.0, 80.1, 90.0, 90.1, 90.2], [1.0, 1.1, 1.2, 5.0, 20.0]
    assert chains.thinned(accuracy, energy, 3) == [0, 2, 4]
    assert chains.thinned(accuracy, energy, 9) == [0, 1, 2, 3, 4]
    assert chains.thinned([1.0], [1.0], 1) == [0]


def test_thresholds_come_from_calibration_rows_alone() -> None:
    calibration, held_out = family(800, 2), family(600, 3)
    points = chains.fit(calibration, held_out, NAMES, JOULES, 2)
    tried = {name: set(map(float, chains.grid(scores))) for name, scores in zip(NAMES, calibration.scores, strict=True)}
    assert len(points) > 5
    for point in points:
        assert all(limit in tried[name] for name, limit in zip(point.chain, point.thresholds, strict=False))
        accuracy, reach = by_hand(held_out, [NAMES.index(name) for name in point.chain], point.thresholds)
        assert point.accuracy == pytest.approx(100 * accuracy)
        assert point.reach == pytest.approx(reach)
    # Held-out rows can leave points out, but never bring one in.
    other = chains.fit(calibration, family(600, 4), NAMES, JOULES, 2)
    chosen = chains.candidates(calibration, JOULES)
    worth = [chosen[i] for i in chains.front([c.accuracy for c in chosen], [c.energy_j for c in chosen])]
    allowed = {(tuple(NAMES[v] for v in c.chain), c.thresholds) for c in worth} | {((name,), ()) for name in NAMES}
    assert {(p.chain, p.thresholds) for p in (*points, *other)} <= allowed


def test_the_front_of_a_family_that_knows_what_it_knows() -> None:
    held_out = family(4000, 6)
    points = chains.fit(family(4000, 5), held_out, NAMES, JOULES, 2)
    assert [p.energy for p in points] == sorted(p.energy for p in points)
    assert [p.accuracy for p in points] == sorted(p.accuracy for p in points)
    assert len(points) <= chains.MOST_POINTS + len(NAMES)
    assert points[0].chain == ("small",)
    near = next(p for p in points if p.difference > -1.0)
    assert near.energy < 0.75, "a chain saves where cheap variants are right and sure"
    assert {len(p.chain) for p in points} >= {1, 2, 3}


def test_the_grid_is_float32_rising_and_fine_where_few_go_on() -> None:
    scores = np.random.default_rng(0).random(10_000).astype(np.float32)
    tried = chains.grid(scores)
    assert tried.dtype == np.float32
    assert (np.diff(tried) > 0).all()
    parts = [(scores < limit).mean() for limit in tried]
    assert parts[0] < 0.005
    assert parts[-1] > 0.9
    assert chains.grid(np.ones(5, np.float32)).tolist() == [1.0]


def test_dearer_variants_that_are_right_less_often_are_not_asked() -> None:
    assert set(chains.orders([1.0, 2.0, 3.0], [0.9, 0.8, 0.95])) == {(0,), (1,), (2,), (0, 2), (1, 2)}
    assert max(map(len, chains.orders([1.0, 2.0, 3.0, 4.0], [0.1, 0.2, 0.3, 0.4]))) == 3


# --- temperature --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("true", [0.6, 1.8])
def test_the_temperature_is_found(true: float) -> None:
    generator = np.random.default_rng(0)
    logits = 2 * generator.standard_normal((4000, 5))
    p = np.exp(logits)
    p /= p.sum(axis=1, keepdims=True)
    labels = (p.cumsum(axis=1) > generator.random((4000, 1))).argmax(axis=1)
    sharp = (logits * true).astype(np.float32)
    assert temperature.fitted(sharp, labels, logits=True) == pytest.approx(true, rel=0.08)
    q = np.exp(sharp) / np.exp(sharp).sum(axis=1, keepdims=True)
    assert temperature.fitted(q, labels, logits=False) == pytest.approx(true, rel=0.08)
    assert temperature.fitted(logits.astype(np.float32), labels, logits=True) == 1.0, "what does not help is left"
    assert temperature.fitted(np.full((3, 2), np.nan, np.float32), np.zeros(3, int), logits=True) == 1.0


# --- what is kept -------------------------------------------------------------------------------------------------


def observed() -> Observed:
    held_out = family(600, 3)
    return Observed(NAMES, family(800, 2), held_out, held_out.right == held_out.right[2])


def cascade_of(rows: Observed, joules: tuple[float, ...] = JOULES) -> CascadeProfile:
    costs = Costs(dict(zip(NAMES, joules, strict=True)), dict.fromkeys(NAMES, "2c"), "modelled")
    return rows.cascade(ConfidenceSpec(kind="top"), dict.fromkeys(NAMES, 1.0), costs, "large")


def test_a_cascade_survives_json_and_an_old_profile_has_none() -> None:
    found = cascade_of(observed())
    assert msgspec.json.decode(msgspec.json.encode(found), type=CascadeProfile) == found
    assert len(msgspec.json.encode(found)) < 40_000
    assert len(found.scores["small"].quantiles) == 33
    assert found.scores["large"].agreement == (1.0,) * 10
    assert found.scores["small"].right[0] < found.scores["small"].right[-1], "the surer, the more often right"
    old = msgspec.to_builtins(profiles_fixture.profile())
    del old["cascade"]
    assert msgspec.convert(old, type(profiles_fixture.profile())).cascade is None


def test_rows_are_kept_and_refused_where_they_are_another_s(tmp_path: Path) -> None:
    rows, path = observed(), tmp_path / "profiles" / "f.rows.npz"
    assert read(path, "now") is None
    write(path, rows, "now")
    back = read(path, "now")
    assert back is not None
    assert back.points(dict(zip(NAMES, JOULES, strict=True)), "large") == cascade_of(rows).points
    assert read(path, "earlier") is None, "rows of another measurement"
    whole = path.read_bytes()
    for damage in (whole[:100], b"", whole[:4000] + bytes(200) + whole[4200:], b"\x80\x04pickle"):
        path.write_bytes(damage)
        assert read(path, "now") is None
    path.unlink()
    assert read(path, "now") is None
    for key, value in (("held_out_same", np.zeros(3, np.bool_)), ("calibration_scores", np.zeros((3, 800)))):
        with pytest.raises(ValueError, match=r"belong|type"):
            observed_of({**rows.arrays(), key: value})


def test_other_energies_have_a_front_of_their_own() -> None:
    rows = observed()
    measured = cascade_of(rows)
    dear_small = Costs({"small": 2.4, "medium": 2.5, "large": 9.0}, dict.fromkeys(NAMES, "1g.5gb"), "analytical")
    anew = at_costs(measured, dear_small, rows)
    assert anew.points == cascade_of(rows, (2.4, 2.5, 9.0)).points
    kept = at_costs(measured, dear_small, None)
    assert (kept.energy_method, kept.energy_on["small"]) == ("analytical", "1g.5gb")
    known = {(p.chain, p.thresholds): p for p in measured.points}
    for point in kept.points:
        before = known[point.chain, point.thresholds]
        assert point.energy == pytest.approx(cascade.energy_of(before, dear_small.joules) / 9.0)
        assert msgspec.structs.replace(point, energy=0.0) == msgspec.structs.replace(before, energy=0.0)
    assert [p.accuracy for p in kept.points] == sorted(p.accuracy for p in kept.points)


def test_energy_is_that_of_base_s_profile_at_the_cheapest_batch() -> None:
    profile = profiles_fixture.profile()
    costs = costs_of(profile.latency, profile.backend, profile.base)
    assert costs.on == dict.fromkeys(NAMES, "2c")
    for name, joules in costs.joules.items():
        assert joules == min(m.energy_j_per_row for m in profile.latency if (m.variant, m.profile) == (name, "2c"))
    elsewhere = [m for m in profile.latency if m.variant != "small" or m.profile == "1c"]
    assert costs_of(elsewhere, profile.backend, profile.base).on["small"] == "1c"


# --- asking and showing -------------------------------------------------------------------------------------------


def test_the_cheapest_point_that_is_good_enough() -> None:
    found = cascade_of(observed())
    assert cascade.expected_energy((1.0, 0.5, 0.1), (1.0, 2.0, 10.0)) == 3.0
    joules = dict(zip(NAMES, JOULES, strict=True))
    wanted = found.points[len(found.points) // 2]
    best = cascade.cheapest(found.points, wanted.low, joules)
    assert best is not None
    assert best.low >= wanted.low
    assert cascade.energy_of(best, joules) <= cascade.energy_of(wanted, joules)
    assert cascade.cheapest(found.points, 100.0, joules) is None
    only = cascade.cheapest(found.points, 0.0, {"small": 1.0})
    assert only is not None
    assert only.chain == ("small",)


def test_the_front_is_shown_with_its_labels(tmp_path: Path) -> None:
    profile = msgspec.structs.replace(profiles_fixture.profile(), cascade=cascade_of(observed()))
    table = front_table(profile)
    assert "against large alone" in table
    assert "800 calibration rows" in table
    assert "600 held-out rows" in table
    assert "(modelled)" in table
    assert sum(" > " in line for line in table.splitlines()) >= 5
    assert "a small  b medium  c large" in front_plot(profile)
    assert alone(profile)["large"] == (1.0, 92.0)
    bare = profiles_fixture.profile()
    assert (front_table(bare), front_plot(bare), alone(bare)) == ("", "", {})


def test_the_plot_puts_marks_where_they_belong() -> None:
    lines = scatter([("*", 0.01, 80.0), ("b", 1.0, 90.0), ("m", 0.1, 85.0)], wide=21, high=15)
    assert lines[0] == " 90.00 |" + " " * 20 + "b"
    assert lines[14] == " 80.00 |*"
    assert lines[7] == " 85.00 |" + " " * 10 + "m"
    assert lines[-1].split() == ["1", "%", "100", "%", "energy"]
    assert len(scatter([("*", 1.0, 90.0)])) == 17


def test_a_png_where_matplotlib_is(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    profile = msgspec.structs.replace(profiles_fixture.profile(), cascade=cascade_of(observed()))
    draw([profile, profile], str(tmp_path / "front.png"))
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
