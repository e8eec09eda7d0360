from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from clover.errors import ConfigError, PlanError
from clover.policies import POLICIES, build
from clover.policies.plans import plan_fixed
from clover.types import GroupCount, Plan, State, configuration_of
from tests.support.mig_fixture import a100s, mig_profile
from tests.support.profiles_fixture import cpu, objective, profile, state, worker


class Custom:
    name = "custom"

    def propose(self, state: State) -> Plan:
        raise PlanError("never")


def test_names_build_policies() -> None:
    assert build("objective").name == "objective"
    assert build("base").name == "base"
    assert build("static:small").name == "static:small"
    assert [build(name).name for name in ("budget", "static", "static:mix")] == ["budget", "static", "static:mix"]
    assert build(f"{__name__}:Custom").name == "custom"


def test_a_policy_of_the_present_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_policy.py").write_text(f"from {__name__} import Custom\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one])
    assert build("own_policy:Custom").name == "custom"


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_that_ships_has_the_name_it_is_built_by(name: str) -> None:
    assert build(name).name == name


@pytest.mark.parametrize("name", ["", "best", "static:", "budget:", "no.module:x", "math:nothing", "math:pi", ":x"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        build(name)


def test_base_is_the_best_variant_on_whole_devices() -> None:
    plan = build("base").propose(state(devices=(cpu(2, "a"), cpu(2, "b"))))
    assert plan.configuration == (GroupCount(variant="large", profile="2c", count=2),)
    assert plan.routing.shares == {"large": 1.0}
    assert plan.prediction.accuracy == pytest.approx(92.0)


def test_static_serves_its_variant_and_says_where_it_breaks_the_floor() -> None:
    plan = build("static:small").propose(state(config=objective(floor=91.0)))
    assert {group.variant for group in plan.configuration} == {"small"}
    assert not plan.feasible
    assert "below the floor" in plan.reason
    assert build("static:large").propose(state(config=objective(floor=91.0))).feasible
    with pytest.raises(PlanError, match="measured: small, medium, large"):
        build("static:huge").propose(state())


@pytest.mark.parametrize("form", ["paper", "floor"])
def test_a_plan_is_whole_and_survives_json(form: str) -> None:
    now = state(config=objective(form, floor=91.0), running=(worker("large", 0, 2),))
    plan = build("objective").propose(now)
    assert plan.feasible
    assert configuration_of(plan.deployment) == plan.configuration
    assert plan.bound is not None
    assert plan.score <= plan.bound
    assert 1 <= len(plan.candidates) <= 10
    assert plan == build("objective").propose(now)
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan
    overloaded = build("objective").propose(msgspec.structs.replace(now, arrival_rate=1e6))
    assert not overloaded.feasible
    assert msgspec.json.decode(msgspec.json.encode(overloaded), type=Plan) == overloaded


def test_the_paper_form_buys_accuracy_below_the_reference_and_saves_above() -> None:
    policy = build("objective")
    clean = policy.propose(state(g_per_kwh=100.0, config=objective(floor=91.0)))
    dirty = policy.propose(state(g_per_kwh=500.0, config=objective(floor=91.0), running=clean.deployment))
    again = policy.propose(state(g_per_kwh=100.0, config=objective(floor=91.0), running=dirty.deployment))
    assert clean.prediction.accuracy == pytest.approx(92.0)
    assert dirty.prediction.accuracy == pytest.approx(91.0, abs=0.01)
    assert dirty.prediction.energy_j_per_row < clean.prediction.energy_j_per_row
    assert again.prediction.accuracy == pytest.approx(92.0)


def test_the_floor_form_saves_whatever_the_grid_does() -> None:
    for g_per_kwh in (50.0, 500.0):
        plan = build("objective").propose(state(g_per_kwh=g_per_kwh, config=objective("floor", floor=91.0)))
        assert plan.prediction.accuracy == pytest.approx(91.0, abs=0.01)


def test_a_tight_slo_moves_the_plan() -> None:
    loose = build("objective").propose(state(g_per_kwh=500.0, rate=150.0, config=objective(slo_ms=60.0, floor=88.0)))
    tight = build("objective").propose(state(g_per_kwh=10.0, rate=150.0, config=objective(slo_ms=5.0, floor=88.0)))
    assert loose.feasible
    assert tight.prediction.p95_ms <= 5.0
    assert tight.prediction.accuracy < 92.0


def test_half_a_machine_is_planned_slower() -> None:
    whole = build("base").propose(state(rate=50.0))
    half = build("base").propose(state(rate=50.0, share=0.5))
    assert half.prediction.p95_ms > 1.5 * whole.prediction.p95_ms
    assert half.prediction.utilisation == pytest.approx(2 * whole.prediction.utilisation)


@pytest.mark.slow
def test_large_spaces_are_annealed_and_say_so() -> None:
    variants = {f"v{i}": (85.0 + i, 1.0 + i) for i in range(7)}
    measured = profile((1, 2, 4, 8), variants)
    plan = build("objective").propose(
        state(devices=(cpu(8, "a"), cpu(8, "b")), measured=measured, config=objective(floor=90.0))
    )
    assert "simulated" in plan.reason
    assert plan.gap is not None
    assert 0.0 <= plan.gap < 0.5
    assert plan.feasible


def test_a_given_configuration_is_planned_as_it_is() -> None:
    configuration = (
        GroupCount(variant="large", profile="1c", count=1),
        GroupCount(variant="small", profile="1c", count=1),
    )
    plan = plan_fixed(state(config=objective(floor=90.0)), configuration)
    assert plan.configuration == configuration
    assert plan.prediction.accuracy >= 90.0 - 1e-4
    with pytest.raises(PlanError, match="not measured on 4c"):
        plan_fixed(state(), (GroupCount(variant="large", profile="4c", count=1),))


def test_a_profile_for_other_devices_is_refused() -> None:
    with pytest.raises(PlanError, match="profile it again"):
        build("objective").propose(state(measured=profile((4,))))


def test_plans_keep_a_margin_above_the_floor_as_far_as_the_best_variant_reaches() -> None:
    def planned(margin: float, floor: float = 91.0) -> tuple[float, bool, str]:
        config = msgspec.structs.replace(objective("floor", floor=floor), accuracy_margin=margin)
        plan = build("objective").propose(state(g_per_kwh=500.0, config=config))
        return plan.prediction.accuracy, plan.feasible, plan.reason

    best = planned(0.0, floor=0.0)[0]
    exact, feasible, _ = planned(0.0)
    assert feasible
    assert exact == pytest.approx(91.0, abs=0.01)
    kept, feasible, reason = planned(0.25)
    assert feasible
    assert kept == pytest.approx(91.25, abs=0.01)
    assert "91.25 %" in reason
    top, feasible, _ = planned(50.0)
    assert feasible
    assert top > kept > best


def test_a_configuration_within_the_margin_says_so() -> None:
    best = max(item.value for item in state().profile.accuracy)
    others = sorted({item.value for item in state().profile.accuracy} - {best})
    config = msgspec.structs.replace(objective(floor=others[-1] - 0.1), accuracy_margin=0.5)
    variant = next(item.variant for item in state().profile.accuracy if item.value == others[-1])
    plan = plan_fixed(state(config=config), (GroupCount(variant=variant, profile="2c", count=1),))
    assert not plan.feasible
    assert "and its margin of" in plan.reason


def test_rows_wait_only_where_that_is_allowed_and_pays() -> None:
    now = state(rate=300.0, devices=a100s(1), measured=mig_profile(), config=objective("floor", slo_ms=60.0))
    plain = build("objective").propose(now)
    assert not plain.routing.wait_ms
    allowed = msgspec.structs.replace(now, objective=msgspec.structs.replace(now.objective, waits=True))
    waits = build("objective").propose(allowed)
    assert waits.routing.wait_ms
    assert waits.prediction.energy_j_per_row < plain.prediction.energy_j_per_row
    assert waits.prediction.p95_ms <= 60.0
    assert waits.bound is not None
    assert waits.score <= waits.bound
    fixed = plan_fixed(allowed, waits.configuration)
    assert fixed.routing == waits.routing, "a configuration that stays keeps its waits"
