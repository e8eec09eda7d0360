"""Moves of shares: balanced, within their room, and told apart."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.planning.model.swings import moved, moves, signs
from tests.support.examples import examples

ROOM = st.dictionaries(st.sampled_from("abcdefghi"), st.floats(0.0, 0.2), max_size=9)


@pytest.mark.parametrize("count", range(2, 10))
def test_any_two_variants_move_together_as_often_as_against_each_other_but_once(count: int) -> None:
    for one, other in itertools.combinations(np.array(signs(count)).T, 2):
        assert one @ other == -1  # of shares whose sum is fixed nothing is nearer to orthogonal for all


@pytest.mark.parametrize("count", range(2, 10))
def test_in_every_move_some_get_more_and_some_less(count: int) -> None:
    for directions in signs(count):
        assert {1, -1} == set(directions)


def test_one_variant_alone_has_no_move() -> None:
    assert signs(1) == signs(0) == moves({"a": 0.3}) == moves({}) == []


@given(ROOM)
@settings(max_examples=examples(100), deadline=None)
def test_over_a_round_mean_shares_are_the_plans_and_no_variant_leaves_its_room(room: dict[str, float]) -> None:
    shares = {variant: 1.0 / max(len(room), 1) for variant in room}
    total = dict.fromkeys(shares, 0.0)
    found = moves(room)
    for move, sign in itertools.product(found, (1.0, -1.0)):
        there = moved(shares, move, sign)
        assert sum(there.values()) == pytest.approx(sum(shares.values()), abs=1e-12)
        for variant, share in there.items():
            assert abs(share - shares[variant]) <= room[variant] + 1e-12
            total[variant] += share / (2 * len(found))
    assert not found or total == pytest.approx(shares, abs=1e-12)


@given(ROOM)
@settings(max_examples=examples(50), deadline=None)
def test_a_round_tells_all_variants_with_room_apart(room: dict[str, float]) -> None:
    room = {variant: most for variant, most in room.items() if most > 0.01}
    found = moves(room)
    steps = np.array([[move.get(variant, 0.0) for variant in room] for move in found])
    assert np.linalg.matrix_rank(steps, tol=1e-6) == max(len(room) - 1, 0) if found else len(room) < 2


def test_a_variant_without_room_stays() -> None:
    assert all("b" not in move for move in moves({"a": 0.1, "b": 0.0, "c": 0.1}))


def test_the_side_with_more_room_moves_by_less() -> None:
    assert moves({"a": 0.1, "b": 0.3}) == [{"a": pytest.approx(0.1), "b": pytest.approx(-0.1)}]
