"""Scores of answers: the twin, then the kernel."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from tests.reference import scores as twin

KINDS = ("top", "margin", "entropy")
ROUNDING = 0.01
SHAPES = array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=40)
LOGITS = arrays(np.float32, SHAPES, elements=st.floats(-60, 60, width=32))
ANY = arrays(np.float32, SHAPES, elements=st.floats(width=32) | st.floats(0.0, 1.0, width=32))

LENGTHS = (*range(2, 41), 1000)  # every remainder of the lanes in which a row is read, and rows shorter than these
NEAR = 1.5e-7  # what a score of floats may be off: a unit in the last place of 1 is 1.2e-7

kinds = pytest.mark.parametrize("kind", KINDS)


def scored(
    module: Any, kind: str, logits: bool, rows: NDArray[np.float32] | list[list[float]]
) -> tuple[NDArray[np.float32], int]:
    """Return the scores of rows, and the first of them that holds no probabilities."""
    values = np.array(rows, np.float32)
    found = np.full(len(values), 7.0, np.float32)
    return found, module.Scores(kind, logits, ROUNDING).score(values, found)


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.array([twin.softmax(row) for row in logits.tolist()], np.float32)


@kinds
@given(LOGITS)
def test_scores_are_the_twins(kernels: SimpleNamespace, kind: str, logits: NDArray[np.float32]) -> None:
    wanted, _ = scored(twin, kind, True, logits)
    found, wrong = scored(kernels.scores, kind, True, logits)
    assert wrong == -1
    assert ((found >= -1e-6) & (found <= 1.0 + 1e-6)).all()
    assert found == pytest.approx(wanted, abs=1e-6)
    found, wrong = scored(kernels.scores, kind, False, probabilities(logits))
    assert wrong == -1
    assert found == pytest.approx(wanted, abs=1e-6)


@kinds
@pytest.mark.parametrize("logits", [False, True])
@given(rows=ANY)
def test_odd_rows_score_as_the_twins(
    kernels: SimpleNamespace, kind: str, logits: bool, rows: NDArray[np.float32]
) -> None:
    (wanted, at), (found, wrong) = scored(twin, kind, logits, rows), scored(kernels.scores, kind, logits, rows)
    assert wrong == at
    assert found == pytest.approx(wanted, rel=1e-5, abs=1e-6, nan_ok=True)


@kinds
@pytest.mark.parametrize("logits", [False, True])
@given(rows=ANY)
def test_a_row_does_not_heed_its_neighbours(
    kernels: SimpleNamespace, kind: str, logits: bool, rows: NDArray[np.float32]
) -> None:
    together, _ = scored(kernels.scores, kind, logits, rows)
    alone = [scored(kernels.scores, kind, logits, rows[at : at + 1])[0][0] for at in range(len(rows))]
    assert np.array_equal(together, alone, equal_nan=True)


@pytest.mark.parametrize("classes", [1000, 30_000])
@kinds
def test_many_classes(kernels: SimpleNamespace, kind: str, classes: int) -> None:
    logits = np.random.default_rng(1).normal(0.0, 3.0, (2, classes)).astype(np.float32)
    wanted, _ = scored(twin, kind, True, logits)
    assert scored(kernels.scores, kind, True, logits)[0] == pytest.approx(wanted, abs=1e-6)
    found, wrong = scored(kernels.scores, kind, False, probabilities(logits))
    assert found == pytest.approx(wanted, abs=1e-6)
    assert wrong == -1


@pytest.mark.parametrize("logits", [False, True])
@kinds
def test_rows_of_any_length(kernels: SimpleNamespace, kind: str, logits: bool) -> None:
    drawn = np.random.default_rng(2)
    for classes in LENGTHS:
        rows = drawn.normal(0.0, 3.0, (3, classes)).astype(np.float32)
        if not logits:
            rows = probabilities(rows)
        wanted, _ = scored(twin, kind, logits, rows)
        found, wrong = scored(kernels.scores, kind, logits, rows)
        assert found == pytest.approx(wanted, abs=NEAR), f"{classes} classes"
        assert wrong == -1


@pytest.mark.parametrize("logits", [False, True])
def test_the_two_largest_are_found_wherever_they_stand(kernels: SimpleNamespace, logits: bool) -> None:
    for classes in (2, 3, 4, 5, 7, 8, 11, 16, 17, 31, 35):
        first, second = np.nonzero(~np.eye(classes, dtype=bool))
        rows = np.tile(np.linspace(-0.25, 0.125, classes, dtype=np.float32), (len(first), 1))
        at = np.arange(len(first))
        rows[at, first], rows[at, second] = 0.75, 0.5
        found, _ = scored(kernels.scores, "margin", logits, rows)
        if logits:
            wanted, _ = scored(twin, "margin", logits, rows)
            assert found == pytest.approx(wanted, abs=NEAR), f"{classes} classes"
        else:
            assert found.tolist() == [0.25] * len(first), f"{classes} classes"
        rows[at, second] = 0.75
        assert not scored(kernels.scores, "margin", logits, rows)[0].any(), "the largest comes twice"


@kinds
def test_the_largest_is_found_wherever_it_stands(kernels: SimpleNamespace, kind: str) -> None:
    for classes in LENGTHS[:-1]:
        rows = np.full((classes, classes), -70.0, np.float32)
        np.fill_diagonal(rows, 80.0)  # the exponential of any larger difference than of the largest would be infinite
        assert scored(kernels.scores, kind, True, rows)[0].tolist() == [1.0] * classes


@kinds
@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf])
def test_what_is_no_number_is_noticed_wherever_it_stands(
    kernels: SimpleNamespace, kind: str, logits: bool, bad: float
) -> None:
    for classes in (1, *LENGTHS[:-1]):
        if kind == "margin" and classes == 1:
            continue
        rows = np.full((classes, classes), 1.0 / classes, np.float32)
        np.fill_diagonal(rows, bad)
        found, wrong = scored(kernels.scores, kind, logits, rows)
        assert np.isnan(found).all(), f"{classes} classes"
        assert wrong == -1


@kinds
def test_a_class_that_is_ruled_out_counts_for_nothing_wherever_it_stands(kernels: SimpleNamespace, kind: str) -> None:
    for classes in LENGTHS[:-1]:
        rows = np.tile(np.linspace(-2.0, 2.0, classes, dtype=np.float32), (classes, 1))
        np.fill_diagonal(rows, -math.inf)
        wanted, _ = scored(twin, kind, True, rows)
        assert scored(kernels.scores, kind, True, rows)[0] == pytest.approx(wanted, abs=NEAR), f"{classes} classes"
        if kind == "top":
            fewer = [[one for one in row if one > -math.inf] for row in rows.tolist()]
            assert scored(kernels.scores, kind, True, fewer)[0] == pytest.approx(wanted, abs=NEAR)


def test_exponentials_are_as_near_as_floats(kernels: SimpleNamespace) -> None:
    others = 999  # as many equal logits below the largest show a small exponential in the score
    below = np.linspace(-25.0, 0.0, 1501, dtype=np.float32)
    rows = np.repeat(below[:, None], others + 1, axis=1)
    rows[:, 500] = 0.0
    wanted = [1.0 / (1.0 + others * math.exp(one)) for one in below.tolist()]
    assert scored(kernels.scores, "top", True, rows)[0] == pytest.approx(wanted, rel=2e-7, abs=0.0)


def test_exponentials_that_are_small_but_many_count(kernels: SimpleNamespace) -> None:
    row = np.full((1, 1_000_000), -26.5, np.float32)
    row[0, 77] = 0.0
    wanted = 1.0 / (1.0 + 999_999 * math.exp(-26.5))
    assert scored(kernels.scores, "top", True, row)[0] == pytest.approx([wanted], rel=6e-8, abs=0.0)


@kinds
def test_exponentials_that_vanish_add_nothing(kernels: SimpleNamespace, kind: str) -> None:
    below = [*np.linspace(-120.0, -80.0, 4001), *-np.geomspace(120.0, 3e38, 2001), -math.inf]
    rows = np.zeros((len(below), 6), np.float32)
    rows[:, :5] = np.array(below, np.float32)[:, None]
    assert scored(kernels.scores, kind, True, rows)[0].tolist() == [1.0] * len(below)


@pytest.mark.parametrize(
    ("kind", "logits", "row", "score"),
    [
        ("top", False, [0.2, 0.7, 0.1], 0.7),
        ("margin", False, [0.7, 0.1, 0.2], 0.5),
        ("margin", False, [0.1, 0.5, 0.5], 0.0),
        ("entropy", False, [0.0, 1.0, 0.0], 1.0),
        ("entropy", False, [-0.001, 1.0, 0.0], 1.0),
        ("entropy", False, [1 / 3] * 3, 0.0),
        ("entropy", False, [0.5, 0.5, 0.0], 1.0 - math.log(2) / math.log(3)),
        ("top", True, [3.0, 3.0, 3.0], 1 / 3),
        ("margin", True, [3.0, 3.0, 3.0], 0.0),
        ("entropy", True, [3.0, 3.0, 3.0], 0.0),
        ("top", True, [-math.inf, 0.0, 0.0], 0.5),
        ("margin", True, [-math.inf, 0.0, -math.inf], 1.0),
        ("entropy", True, [-math.inf, 0.0, 0.0], 1.0 - math.log(2) / math.log(3)),
        ("top", True, [3e38, -3e38, 0.0], 1.0),
        ("margin", True, [3e38, -3e38, 0.0], 1.0),
        ("entropy", True, [3e38, -3e38, 0.0], 1.0),
        ("top", False, [-math.inf, 0.7], 0.7),
        ("top", False, [1.0], 1.0),
        ("top", True, [-5.0], 1.0),
        ("entropy", True, [-5.0], math.nan),
    ],
)
def test_known_scores(kernels: SimpleNamespace, kind: str, logits: bool, row: list[float], score: float) -> None:
    found, wrong = scored(kernels.scores, kind, logits, [row])
    assert found[0] == pytest.approx(score, abs=1e-6, nan_ok=True)
    assert wrong == -1


@kinds
@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_row_that_is_not_finite_scores_nan(
    kernels: SimpleNamespace, kind: str, logits: bool, bad: float, at: int
) -> None:
    odd = [0.2, 0.7, 0.1]
    odd[at] = bad
    found, wrong = scored(kernels.scores, kind, logits, [[0.5, 0.25, 0.25], odd, [bad] * 3])
    assert np.isnan(found).tolist() == [False, True, True]
    assert wrong == -1


@kinds
def test_logits_that_rule_out_every_class_score_nan(kernels: SimpleNamespace, kind: str) -> None:
    assert np.isnan(scored(kernels.scores, kind, True, [[-math.inf] * 3])[0][0])


def test_the_first_row_that_holds_no_probabilities_is_told(kernels: SimpleNamespace) -> None:
    rows = [[0.9, 0.1], [math.nan, 4.0], [1.009, 0.0], [3.0, 1.0], [-1.0, -2.0]]
    found, wrong = scored(kernels.scores, "top", False, rows)
    assert wrong == 3
    assert found.tolist() == pytest.approx([0.9, math.nan, 1.009, 3.0, -1.0], nan_ok=True)
    assert scored(kernels.scores, "margin", False, rows)[1] == 3
    assert scored(kernels.scores, "top", False, rows[4:])[1] == 0
    assert scored(kernels.scores, "entropy", False, [[0.0, 1.0], [1.0, 9.0]])[1] == 1
    assert scored(kernels.scores, "entropy", False, [[3e38, 1.0]])[1] == 0
    assert scored(kernels.scores, "entropy", False, [[0.5]])[1] == 0, "of one class there is no entropy"


def test_numbers_of_a_row_may_have_several_axes(kernels: SimpleNamespace) -> None:
    rows = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    found = np.zeros(2, np.float32)
    assert kernels.scores.Scores("margin", True, ROUNDING).score(rows, found) == -1
    assert found.tolist() == scored(kernels.scores, "margin", True, rows.reshape(2, 12))[0].tolist()


def test_no_rows_have_no_scores(kernels: SimpleNamespace) -> None:
    found, wrong = scored(kernels.scores, "top", True, np.zeros((0, 3), np.float32))
    assert (found.tolist(), wrong) == ([], -1)


@pytest.mark.parametrize(
    ("values", "into"),
    [
        (np.zeros((2, 3), np.float64), np.zeros(2, np.float32)),
        (np.zeros((2, 3), np.int32), np.zeros(2, np.float32)),
        (np.zeros((3, 2), np.float32).T, np.zeros(2, np.float32)),
        (np.zeros((), np.float32), np.zeros(1, np.float32)),
        (np.zeros((2, 3), np.float32), np.zeros(1, np.float32)),
        (np.zeros((2, 3), np.float32), np.zeros((2, 1), np.float32)),
        (np.zeros((2, 3), np.float32), np.zeros(2, np.float64)),
        (np.zeros((2, 3), np.float32), np.broadcast_to(np.float32(0.0), (2,))),
        (np.zeros((2, 0), np.float32), np.zeros(2, np.float32)),
    ],
)
def test_arrays_that_are_not_as_they_should_be_are_refused(
    kernels: SimpleNamespace, values: NDArray[Any], into: NDArray[Any]
) -> None:
    with pytest.raises(ValueError):
        kernels.scores.Scores("top", True, ROUNDING).score(values, into)
    assert not into.any()


def test_scores_are_written_to_slots(kernels: SimpleNamespace) -> None:
    rows = np.array([[0.9, 0.1], [math.nan, 0.5], [0.6, 0.4]], np.float32)
    slots = np.array([4, 0, 2], np.uint32)
    whole = np.full((5, 3), 7.0, np.float32)
    top, found = kernels.scores.Scores("top", False, ROUNDING), whole[:, 1]
    assert top.score(rows, found, slots) == -1
    assert found.tolist() == pytest.approx([math.nan, 7.0, 0.6, 7.0, 0.9], nan_ok=True)
    assert (whole[:, ::2] == 7.0).all(), "a slab has other words of a slot beside its score"
    assert top.score(np.array([[0.5, 0.5], [3.0, 0.0]], np.float32), found, slots[1:]) == 1
    assert top.score(rows[:2], found[3::-3]) == -1
    assert found.tolist() == pytest.approx([math.nan, 7.0, 3.0, 0.9, 0.9], nan_ok=True)


@pytest.mark.parametrize(
    ("slots", "error"),
    [
        (np.array([1, 5], np.uint32), IndexError),
        (np.array([1, 2**32 - 1], np.uint32), IndexError),
        (np.array([1], np.uint32), ValueError),
        (np.array([[1], [2]], np.uint32), ValueError),
        (np.array([1, 0, 2, 0], np.uint32)[::2], ValueError),
        (np.array([1, 2], np.int32), ValueError),
        (np.array([1, 2], np.uint64), ValueError),
    ],
)
def test_nothing_is_written_to_slots_that_are_not_there(
    kernels: SimpleNamespace, slots: NDArray[Any], error: type[Exception]
) -> None:
    found = np.full(5, 7.0, np.float32)
    with pytest.raises(error):
        kernels.scores.Scores("top", True, ROUNDING).score(np.zeros((2, 3), np.float32), found, slots)
    assert found.tolist() == [7.0] * 5


def test_what_makes_no_sense_is_refused(kernels: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="there is no score 'topp'"):
        kernels.scores.Scores("topp", True, ROUNDING)
    for logits in (False, True):
        with pytest.raises(ValueError, match="a margin two: there are 1"):
            scored(kernels.scores, "margin", logits, [[0.5]])
    for values in (None, "abc"):
        with pytest.raises((AttributeError, TypeError)):
            kernels.scores.Scores("top", True, ROUNDING).score(values, np.zeros(1, np.float32))
