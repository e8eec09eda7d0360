"""The parts of sentences that `ctl`, the dashboard and the banner have in common."""

from __future__ import annotations

from typing import Any

import pytest

from clover.control import wording


def test_assignments_of_one_placement_are_one_worker() -> None:
    here = [{"placement": "a", "variant": "half"}, {"placement": "b"}, {"placement": "a", "variant": "full"}]
    assert wording.by_worker(here) == [[here[0], here[2]], [here[1]]]
    assert wording.by_worker([{"variant": "half"}, {"variant": "half"}]) == [[{"variant": "half"}]] * 2


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({}, ""),
        ({"pin": "base"}, "pinned to BASE"),
        ({"pin": "static:small", "pin_forced": True}, "pinned to small (forced)"),
        (
            {
                "pin": [
                    {"variant": "a", "profile": "1c", "count": 2},
                    {"variant": "a", "beside": ["b"], "profile": "2c", "count": 1},
                ]
            },
            "pinned to 2 x a@1c + 1 x a/b@2c",
        ),
    ],
)
def test_a_pin_is_said_in_one_way(model: dict[str, Any], words: str) -> None:
    assert wording.pin_sentence(model) == words


@pytest.mark.parametrize(
    ("budget", "kept"),
    [
        (None, "accuracy >= 91.00 %"),
        ({"accuracy_target": 91.5}, "accuracy on average at least 91.50 %, no plan below 91.00 %"),
        (
            {"accuracy_target": 91.5, "horizon_s": 86_400.0},
            "accuracy on average at least 91.50 % a day, no plan below 91.00 %",
        ),
        (
            {"accuracy_target": 91.5, "horizon_s": 7_200.0},
            "accuracy on average at least 91.50 % over 2 hours, no plan below 91.00 %",
        ),
    ],
)
def test_targets_are_said_with_the_mean_that_a_budget_asks_for(budget: dict[str, float] | None, kept: str) -> None:
    model = {"targets": {"slo_ms": 20.0, "accuracy_floor": 91.0}, "budget": budget}
    assert wording.targets_words(model) == f"p95 <= 20 ms, {kept}"


def test_what_was_saved_at_equal_accuracy_comes_first() -> None:
    saved = {"base": {"words": "b"}, "matched": {"words": "m"}, "rows": 3}
    assert list(wording.comparisons(saved)) == ["matched", "base"]
    assert wording.comparisons({"base": None}) == wording.comparisons(None) == {}
