"""What stays of the rows behind cascades: kept, refused, and played again at other energies."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from clover.emulation.profiles.analytical import at_other_energies, expected_energy
from clover.errors import ConfigError
from clover.profiling import chains
from clover.profiling.chains import Answers, play, profile_of
from clover.profiling.pareto import best_of, cascades, draw
from clover.profiling.row_store import CascadeRows, most_frugal, read, with_energies, write
from clover.types import CascadeProfile, FamilyProfile
from tests.support import profiles_fixture

NAMES = ("small", "medium", "large")
COSTS = {"small": 0.1, "large": 1.0}
PROFILE = profiles_fixture.profile()
FRUGAL = most_frugal(PROFILE.latency, PROFILE.backend, PROFILE.base.profile)


def split(seed: int, count: int) -> dict[str, Answers]:
    """Variants that are surer where they are right, and say 1 then; 0, or -1 of their own, where they are wrong."""
    rng = np.random.default_rng(seed)
    hard = rng.random(count)
    found = {}
    for at, (name, part) in enumerate(zip(NAMES, (0.8, 0.9, 0.95), strict=True)):
        right = hard < part + 0.1 * rng.standard_normal(count)
        scores = np.clip(0.5 + 0.4 * (part - hard) + 0.1 * rng.standard_normal(count), 0.0, 1.0)
        said = np.where(right, 1, np.where(rng.random(count) < 0.5, 0, -at))
        found[name] = Answers(scores.astype(np.float32).astype(np.float64), right, said)
    return found


KEPT = CascadeRows(split(1, 1500), split(2, 1200))


def cascade_at(joules: dict[str, float]) -> CascadeProfile:
    return profile_of(KEPT.calibration, KEPT.held_out, joules)


MEASURED = with_energies(cascade_at({name: m.energy_j_per_row for name, m in FRUGAL.items()}), FRUGAL)


def dearer(part: float) -> dict[str, Any]:
    """The small variant costs nearly what the medium one does."""
    joules = FRUGAL["medium"].energy_j_per_row * part
    return {
        name: msgspec.structs.replace(
            m, profile="1g.5gb", energy_method="analytical", **({"energy_j_per_row": joules} if name == "small" else {})
        )
        for name, m in FRUGAL.items()
    }


def test_the_energy_of_a_chain() -> None:
    assert expected_energy((1.0, 0.5, 0.1), (1.0, 2.0, 10.0)) == 3.0
    with pytest.raises(ValueError, match="shorter"):
        expected_energy((1.0, 0.5), (1.0,))


# --- what is told -------------------------------------------------------------------------------------------------


def test_costs_say_where_they_come_from() -> None:
    assert (MEASURED.best, MEASURED.method) == ("large", "modelled")
    assert MEASURED.measured_on == dict.fromkeys(NAMES, "2c"), "BASE's profile"
    for name, joules in MEASURED.joules.items():
        mine = [m.energy_j_per_row for m in PROFILE.latency if (m.variant, m.profile) == (name, "2c")]
        assert joules == min(mine)
    for point in MEASURED.points:
        expected = expected_energy(point.reach, [MEASURED.joules[name] for name in point.chain])
        assert point.cost == pytest.approx(expected / MEASURED.joules["large"])
    partly = [m for m in PROFILE.latency if m.variant != "small" or m.profile == "1c"]
    assert most_frugal(partly, PROFILE.backend, "2c")["small"].profile == "1c", "where it was measured"
    assert set(most_frugal([m for m in partly if m.variant != "small"], PROFILE.backend, "2c")) == {"medium", "large"}


def test_differences_are_row_by_row() -> None:
    best = KEPT.held_out["large"].right
    for point in MEASURED.points:
        assert point.against is not None
        middle, low, high = point.against
        assert middle == pytest.approx(point.accuracy - 100 * best.mean())
        assert low <= middle <= high
        own = play(KEPT.held_out, MEASURED.joules, point.chain, point.thresholds)
        assert 100 * own.accuracy == pytest.approx(point.accuracy)
        if len(point.chain) > 1 and point.chain[-1] == "large":
            assert high - low < point.high - point.low, "most rows are answered alike, which a paired interval knows"
    alone = next((point for point in MEASURED.points if point.chain == ("large",)), None)
    assert alone is None or alone.against == (0.0, 0.0, 0.0)


def test_the_interval_of_a_difference_is_a_paired_one() -> None:
    """By hand: of 100 rows 90 alike, 8 right only with the chain, 2 only with the best variant alone."""
    right, best = np.zeros(100, np.bool_), np.zeros(100, np.bool_)
    right[:50] = best[:50] = True
    right[50:58] = best[58:60] = True
    scores = np.linspace(0.0, 1.0, 100)
    held_out = {"small": Answers(scores, right), "large": Answers(scores, best)}
    found = chains._point(held_out, COSTS, play(held_out, COSTS, ("small",), ()), "large")
    deviation = ((8 + 2) / 100 - 0.06**2) ** 0.5
    assert found.against == pytest.approx((6.0, 6.0 - 19.6 * deviation, 6.0 + 19.6 * deviation))


def test_scores_tell_by_tenths_what_is_right_and_what_agrees() -> None:
    small, large = MEASURED.sureness["small"], MEASURED.sureness["large"]
    assert len(small.right) == len(small.agreement) == 10
    assert np.mean(small.right) == pytest.approx(KEPT.held_out["small"].right.mean())
    same = np.asarray(KEPT.held_out["small"].said == KEPT.held_out["large"].said)
    assert np.mean(small.agreement) == pytest.approx(same.mean())
    assert small.right[0] < small.right[-1]
    assert large.agreement == (1.0,) * 10


def test_scores_that_are_no_numbers_leave_a_profile_that_can_be_read() -> None:
    """msgspec writes NaN as null, which is no number when it is read."""
    odd = {
        name: Answers(np.where(np.arange(len(own.scores)) % 7 == at, np.nan, own.scores), own.right, own.said)
        for at, (name, own) in enumerate(KEPT.held_out.items())
    }
    nothing = {**odd, "small": Answers(np.full(1200, np.nan), odd["small"].right)}
    for held_out in (odd, nothing):
        found = profile_of(held_out, held_out, MEASURED.joules)
        assert msgspec.json.decode(msgspec.json.encode(found), type=CascadeProfile) == found
    assert found.quantiles["small"] == ()
    assert all(point.chain[0] != "small" for point in found.points if len(point.chain) > 1)


def test_an_older_profile_still_loads() -> None:
    plain = msgspec.to_builtins(msgspec.structs.replace(PROFILE, cascade=MEASURED))
    for key in ("sureness", "best", "joules", "measured_on", "method"):
        del plain["cascade"][key]
    for point in plain["cascade"]["points"]:
        del point["against"]
    old = msgspec.convert(plain, FamilyProfile)
    assert old.cascade is not None
    assert "the best variant" in cascades(old.cascade, 120)[1]
    del plain["cascade"]
    assert msgspec.convert(plain, FamilyProfile).cascade is None


# --- kept ---------------------------------------------------------------------------------------------------------


def test_rows_are_kept_and_given_back(tmp_path: Path) -> None:
    path = tmp_path / "profiles" / "toy.rows.npz"
    assert read(path, "now") is None
    write(path, KEPT, "now")
    back = read(path, "now")
    assert back is not None
    for mine, theirs in ((KEPT.calibration, back.calibration), (KEPT.held_out, back.held_out)):
        assert list(mine) == list(theirs)
        for name, own in mine.items():
            np.testing.assert_array_equal(own.scores, theirs[name].scores)
            np.testing.assert_array_equal(own.right, theirs[name].right)
            np.testing.assert_array_equal(own.said, theirs[name].said)
    assert list(path.parent.iterdir()) == [path]
    assert read(path, "earlier") is None, "another measurement's"


def test_answers_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    said = np.array([b"a"] * 1200, object)
    words = {name: Answers(own.scores, own.right, said) for name, own in KEPT.held_out.items()}
    write(tmp_path / "rows.npz", CascadeRows(KEPT.calibration, words), "now")
    back = read(tmp_path / "rows.npz", "now")
    assert back is not None
    assert back.held_out["small"].said is None
    assert back.calibration["small"].said is not None


def test_damaged_rows_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    write(path, KEPT, "now")
    whole = path.read_bytes()
    for damage in (whole[:100], b"", whole[:4000] + bytes(200) + whole[4200:], b"\x80\x04pickle"):
        path.write_bytes(damage)
        assert read(path, "now") is None
    np.savez(path, made_at=np.array("now"), names=np.array(["a"]), calibration_scores=np.zeros(3))
    assert read(path, "now") is None
    np.savez(path, made_at=np.array("now"), names=np.array([None], object))
    assert read(path, "now") is None, "nothing is unpickled"


# --- elsewhere ------------------------------------------------------------------------------------------------------


def test_other_energies_have_a_front_of_their_own() -> None:
    there = dearer(0.9)
    found = at_other_energies(MEASURED, there, KEPT)
    assert found.points == cascade_at({name: m.energy_j_per_row for name, m in there.items()}).points
    assert (found.method, set(found.measured_on.values())) == ("analytical", {"1g.5gb"})
    assert (found.quantiles, found.sureness) == (MEASURED.quantiles, MEASURED.sureness), "answers are the same"


def test_without_rows_the_points_that_are_there_cost_what_they_cost_there() -> None:
    there = dearer(0.9)
    found = at_other_energies(MEASURED, there, None)
    known = {(p.chain, p.thresholds): p for p in MEASURED.points}
    assert len(found.points) == len(known)
    assert [p.cost for p in found.points] == sorted(p.cost for p in found.points)
    for point in found.points:
        expected = expected_energy(point.reach, [found.joules[name] for name in point.chain]) / found.joules["large"]
        assert point.cost == pytest.approx(expected)
        assert msgspec.structs.replace(point, cost=known[point.chain, point.thresholds].cost) in known.values()


@pytest.mark.parametrize("kept", [KEPT, None])
def test_a_variant_that_does_not_run_there_is_in_no_chain(kept: CascadeRows | None) -> None:
    there = {name: m for name, m in dearer(0.5).items() if name != "medium"}
    found = at_other_energies(MEASURED, there, kept)
    assert {name for point in found.points for name in point.chain} == {"small", "large"}
    assert set(found.joules) == {"small", "large"}


# --- shown --------------------------------------------------------------------------------------------------------


def test_the_table_shows_a_front_with_its_labels() -> None:
    lines = cascades(MEASURED, 120)
    assert "1500 calibration rows, counted on 1200 others" in lines[0]
    assert "% of large alone, each variant at its most frugal batch on 2c (modelled)" in lines[1]
    assert "against large alone" in lines[2]
    accuracies = [float(line.split()[0]) for line in lines[3 : lines.index("")]]
    assert len(accuracies) >= 5
    assert accuracies == sorted(accuracies)
    shown = best_of(MEASURED.points)
    assert all(a.cost < b.cost and a.accuracy < b.accuracy for a, b in itertools.pairwise(shown))
    narrow = cascades(MEASURED, 60)
    assert max(map(len, narrow[2 : narrow.index("")])) <= 60
    assert not any("against large alone" in line for line in narrow)
    for point in MEASURED.points:
        assert any(best.cost <= point.cost and best.accuracy >= point.accuracy for best in shown)


def test_a_png_where_matplotlib_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no family here cascades"):
        draw([PROFILE], str(tmp_path / "none.png"))
    pytest.importorskip("matplotlib")
    profile = msgspec.structs.replace(PROFILE, cascade=MEASURED)
    draw([profile, PROFILE, profile], str(tmp_path / "front.png"))
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
