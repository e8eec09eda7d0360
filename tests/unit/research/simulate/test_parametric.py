"""The parametric confidence of the paper's families: what it promises, and that it says what it is."""

from __future__ import annotations

import numpy as np
import pytest

from clover.errors import ConfigError
from clover.research.simulate import families, world
from clover.research.simulate.parametric import Confidence, cascade_of, draw_answers, parse

ACCURACY = {"small": 80.0, "large": 85.0}


def test_every_variant_is_right_on_exactly_its_part() -> None:
    found = draw_answers(ACCURACY, Confidence(), seed=3, rows=2000)
    assert [own.right.mean() for own in found.values()] == [0.8, 0.85]


def test_scores_are_probabilities_to_be_right() -> None:
    own = draw_answers(ACCURACY, Confidence(), seed=1, rows=40_000)["small"]
    assert 0.0 <= own.scores.min() <= own.scores.max() <= 1.0
    for low, high in ((0.2, 0.4), (0.5, 0.7), (0.8, 0.9), (0.95, 1.0)):
        part = (own.scores >= low) & (own.scores < high)
        assert own.right[part].mean() == pytest.approx(own.scores[part].mean(), abs=0.03)


def test_the_ends_of_both_parameters() -> None:
    sees = draw_answers(ACCURACY, Confidence(blur=0.0), seed=1, rows=1000)["small"]
    assert np.array_equal(sees.scores == 1.0, sees.right), "without blur every error is known"
    alike = draw_answers(ACCURACY, Confidence(alike=1.0), seed=1, rows=1000)
    assert not (alike["small"].right & ~alike["large"].right).any(), "what a good one misses the cheap one misses too"
    apart = draw_answers(ACCURACY, Confidence(alike=0.0), seed=1, rows=20_000)
    assert abs(np.corrcoef(apart["small"].right, apart["large"].right)[0, 1]) < 0.03
    blind = draw_answers(ACCURACY, Confidence(blur=100.0), seed=1, rows=20_000)["small"]
    assert np.ptp(blind.scores) < 0.05, "with all blur a score says nothing but the accuracy"


def test_surer_variants_make_better_chains() -> None:
    def best_within(confidence: Confidence, cost: float) -> float:
        points = cascade_of(ACCURACY, {"small": 1.0, "large": 5.0}, confidence).points
        return max(point.accuracy for point in points if point.cost <= cost)

    sure, unsure = (best_within(Confidence(blur=blur), 0.5) for blur in (0.3, 3.0))
    assert sure > unsure + 0.5


def test_a_profile_of_cascades_says_that_it_is_analytical_and_is_the_same_each_time() -> None:
    one, two = (cascade_of(ACCURACY, {"small": 1.0, "large": 5.0}, Confidence()) for _ in range(2))
    assert one == two
    assert one.method == "analytical"
    assert one.best == "large"


@pytest.mark.parametrize("text", ["", "sure", "parametric:2,1", "parametric:1", "parametric:a,b", "parametric:0,-1"])
def test_what_is_no_confidence_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match="--confidence is"):
        parse(text)


def test_confidences_by_name() -> None:
    assert parse("none") is None
    assert parse("parametric") == Confidence()
    assert parse("parametric:0.95,1") == Confidence(alike=0.95, blur=1.0)


def test_the_papers_families_have_cascades_only_where_asked_for_and_labelled() -> None:
    shapes = world.gpus(1).shapes
    bare = families.load("albert", shapes)
    assert bare.profile.cascade is None
    known = families.load("albert", shapes, Confidence())
    assert known.profile.cascade is not None
    assert "PARAMETRIC" in known.confidence
    assert known.confidence in known.profile.notes
    assert known.profile.latency == bare.profile.latency
