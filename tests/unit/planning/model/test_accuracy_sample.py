"""The margin above the accuracy floor, as the controller takes it: by the sample, by labels, or as configured."""

from __future__ import annotations

import asyncio
from typing import Any

from msgspec.structs import replace

from clover.control.state.family import default_floor
from clover.control.state.request import PlanRequest
from clover.planning.budget.target import target_of
from clover.planning.model.margin import AccuracySample, margin
from clover.planning.model.objective import derive_lambda, held_to, objective_of
from clover.types import CascadeProfile, FamilyProfile, State
from tests.support.chain_points import POINTS
from tests.support.control_fixture import Rig
from tests.support.profiles_fixture import profile

LABELS = {"rows": 5000, "accuracy": 80.0, "expected": 88.0}


def cascading() -> FamilyProfile:
    cascade = CascadeProfile(points=POINTS, quantiles={}, calibration_rows=5000, held_out_rows=5000, best="large")
    return replace(profile(), cascade=cascade)


def rig(labels: dict[str, Any] | None = None, **family: Any) -> Rig:
    settings = {"accuracy_floor": None, "accuracy_margin": None, **family}
    made = Rig(measured=cascading(), family=settings, cascade=True)
    made.fleet.guard_report = lambda: {"feedback": {"variants": labels or {}}}  # type: ignore[method-assign]
    return made


def state(made: Rig) -> State:
    async def story() -> State:
        context, family = made.controller.context, made.family
        family.sample.observe(family.fleet.guard_report())
        conditions = await context.conditions(family)
        return family.state(conditions, context.config, PlanRequest(trigger="test"))

    return asyncio.run(story())


def test_the_default_floor_is_relative_and_its_margin_follows_from_the_sample() -> None:
    seen, known = state(rig()), cascading()
    expected = margin(known, seen.objective.accuracy_floor, relative=True)
    assert seen.objective.accuracy_margin == expected > 0.0
    given = state(rig(accuracy_floor=seen.objective.accuracy_floor))
    assert given.objective.accuracy_margin == margin(known, seen.objective.accuracy_floor, relative=False)
    assert given.objective.accuracy_margin != expected


def test_the_default_floor_of_a_family_that_is_never_right_is_nothing() -> None:
    known = profile()
    best = max(item.value for item in known.accuracy)
    assert default_floor(known) == best - 1.0
    untrained = replace(known, accuracy=tuple(replace(item, value=0.0, method="none") for item in known.accuracy))
    assert default_floor(untrained) == 0.0


def test_cascades_are_planned_with_only_if_their_bound_keeps_the_floor() -> None:
    seen = state(rig())
    assert seen.profile.cascade is not None
    floor, points = seen.objective.accuracy_floor, seen.profile.cascade.points
    assert 0 < len(points) < sum(point.accuracy >= floor for point in POINTS)
    assert all(point.accuracy - floor >= 0.5 for point in points), "their intervals are half a point wide"


def test_cascades_need_no_margin_beyond_their_own_bounds() -> None:
    seen = state(rig())
    aims, floor = objective_of(seen), seen.objective.accuracy_floor
    assert aims.cascade_floor == floor < aims.planned_floor
    assert held_to(aims, floor + 0.1).cascade_floor == floor + 0.1
    given = objective_of(state(rig(accuracy_margin=0.3)))
    assert given.cascade_floor == given.planned_floor
    wanted = replace(seen, objective=replace(seen.objective, accuracy_budget=0.9))
    assert target_of(wanted) == max(floor, 92.0 - 0.9)


def test_a_small_sample_does_not_change_what_a_gram_is_worth() -> None:
    seen = state(rig()).objective
    lams = [derive_lambda(profile(), replace(seen, lam=None, accuracy_margin=margin)) for margin in (0.25, 0.6)]
    assert lams[0] == lams[1]


def test_an_operators_margin_wins_and_labels_do_not_change_it() -> None:
    made = rig({"small": LABELS}, accuracy_margin=0.1)
    seen = state(made)
    assert seen.objective.accuracy_margin == 0.1
    assert seen.profile is made.family.profile
    assert made.family.sample.source == "configured"
    assert made.controller.state()["models"]["toy"]["targets"]["accuracy_margin_from"] == "configured"


def test_labels_that_show_worse_answers_leave_fewer_cascades_and_better_ones_no_more() -> None:
    plain, worse = state(rig()), rig({"large": {**LABELS, "accuracy": 87.0}, "small": LABELS})
    seen = state(worse)
    assert plain.profile.cascade is not None
    assert seen.profile.cascade is not None
    assert len(seen.profile.cascade.points) < len(plain.profile.cascade.points)
    assert worse.family.sample.source == "evaluation sample and labels"
    better = state(rig({"small": {**LABELS, "accuracy": 95.0}}))
    assert better.profile.cascade == plain.profile.cascade
    assert better.objective == plain.objective


def test_the_same_question_has_the_same_answer_so_that_solved_plans_are_known() -> None:
    sample, known = AccuracySample(None), cascading()
    report = {"feedback": {"variants": {"small": LABELS}}}
    sample.observe(report)
    first = sample.keep_certain(known, 91.0, relative=True)
    sample.observe(report)
    assert sample.keep_certain(known, 91.0, relative=True) is first
    assert sample.keep_certain(replace(known, key="another"), 91.0, relative=True) is not first


def test_a_report_without_feedback_is_no_labels() -> None:
    sample = AccuracySample(None)
    sample.observe({})
    assert sample.labels == {}
