"""Simulated workers that share their time between variants: the flow, spawns without a load, hours with and without."""

from __future__ import annotations

from pathlib import Path

import pytest

from clover.errors import ConfigError
from clover.planning.cascade.evaluation import evaluate as evaluate_chain
from clover.planning.model.objective import objective_of
from clover.planning.model.problem import problem_of
from clover.planning.packing.evaluation import evaluate
from clover.research.cli.simulate import main
from clover.research.simulate import clock, families, loads, minutes, parametric, replay, world
from clover.research.simulate.fleet import SimulatedFleet
from clover.research.simulate.flow import FleetModel
from clover.research.simulate.records import Run
from clover.research.simulate.world import Case, Rules, World
from clover.types import Assignment, GroupCount, Routing
from tests.support.chains_fixture import cascading, point
from tests.support.profiles_fixture import objective, placement, profile, state

pytestmark = pytest.mark.slow

BOTH = GroupCount(variant="large", profile="1c", count=2, beside=("small",))


def test_a_mix_flows_as_it_is_planned() -> None:
    given = state(rate=120.0, config=objective("floor", slo_ms=40.0, floor=91.0))
    plan = evaluate(problem_of(given), objective_of(given), (BOTH,))
    flow = FleetModel(profile(), 40.0).flow((BOTH,), plan.routing, 120.0)
    assert flow.served == pytest.approx(120.0)
    assert flow.accuracy == pytest.approx(plan.prediction.accuracy, abs=1e-3)
    assert flow.active_w / 120.0 == pytest.approx(plan.prediction.energy_j_per_row, rel=1e-3)
    assert flow.p95_ms == pytest.approx(plan.prediction.p95_ms, rel=0.02)
    assert sum(item.rows for item in flow.work) == pytest.approx(120.0)
    assert sum(item.joules for item in flow.work) == pytest.approx(flow.active_w)
    over = FleetModel(profile(), 40.0).flow((BOTH,), plan.routing, 1e5)
    assert over.served < 1e5
    assert over.late == 1.0


def test_a_cascade_flows_as_it_is_planned() -> None:
    given = cascading([point(91.5)], rate=120.0)
    plan = evaluate_chain(problem_of(given), objective_of(given), (BOTH,), given.profile.cascade.points[0])  # type: ignore[union-attr]
    flow = FleetModel(given.profile, 30.0).flow((BOTH,), plan.routing, 120.0)
    assert flow.served == pytest.approx(120.0)
    assert flow.active_w / 120.0 == pytest.approx(plan.prediction.energy_j_per_row, rel=1e-3)
    assert flow.p95_ms == pytest.approx(plan.prediction.p95_ms, rel=0.02)
    assert {item.variant for item in flow.work} == {"small", "large"}


@pytest.mark.parametrize("resident", [False, True])
def test_a_variant_that_a_worker_holds_is_ready_at_once(resident: bool) -> None:
    def runs(variant: str, start: int) -> Assignment:
        return Assignment(placement=placement(start, 1), family="toy", variant=variant, backend="eager")

    async def story() -> list[float]:
        fleet = SimulatedFleet(
            FleetModel(profile(), 40.0), clock=clock.now_s, devices=1, idle_w=1.0, pue=1.0, resident=resident
        )
        fleet.load_s = 3.0
        taken = []
        for item in (runs("large", 0), runs("small", 0), runs("small", 1)):
            begun = clock.now_s()
            await fleet.spawn(item)
            taken.append(clock.now_s() - begun)
        fleet.route(fleet.ready_assignments(), Routing(shares={"large": 0.5, "small": 0.5}))
        assert fleet.words() == "1 x large/small@1c + 1 x small@1c"
        return taken

    assert clock.run(story()) == pytest.approx([3.0, 0.0 if resident else 3.0, 3.0])


def a_run(policy: str, *, load_s: float = 0.0) -> Run:
    machine = world.gpus(1, whole=True)
    known = families.load("albert", machine.shapes, parametric.parse("parametric"))
    own = World(machine, known, Rules(noise=False, look_s=300.0, load_s=load_s))
    trace = world.traces([], "", 2.0)[0]
    return replay.play(Case(own, trace, loads.parse("constant:0.4"), world.scheme(policy), 0))


def test_one_gpu_without_mig_saves_more_if_its_worker_holds_all_variants() -> None:
    base, alone, shared = a_run("base"), a_run("budget"), a_run("budget+shared", load_s=3.0)
    assert "/" in shared.steps[-1].deployment
    assert not any("/" in step.deployment for step in alone.steps)
    assert shared.failed == 0
    assert all(step.late <= 0.06 for step in shared.steps)
    assert shared.sums.accuracy >= base.sums.accuracy - 0.5 - 0.05
    assert shared.sums.active_j / shared.sums.rows < alone.sums.active_j / alone.sums.rows
    assert shared.limit_grams is None


def test_row_by_row_shared_workers_do_what_was_planned() -> None:
    machine = world.gpus(1, whole=True)
    known = families.load("albert", machine.shapes, parametric.parse("none"))
    own = World(machine, known, Rules(noise=False))
    trace = world.traces([], "", 1.0)[0]
    found = minutes.play(
        Case(own, trace, loads.parse("constant:0.4"), world.scheme("objective+mix+shared"), 0), seconds=60.0
    )
    assert found.unanswered == 0
    assert found.accuracy == pytest.approx(found.planned_accuracy, abs=0.1)
    assert found.late <= 0.05 * found.rows


def test_schemes_with_shared_workers_have_a_name_of_their_own() -> None:
    assert world.scheme("budget+shared") == world.Scheme("budget+shared", "budget", cascade=None, resident=True)
    assert world.scheme("objective+mix+shared@0.5").lam == 0.5
    for wrong in ("base+shared", "budget+mix+cascade", "budget+shred"):
        with pytest.raises(ConfigError):
            world.scheme(wrong)


def test_resident_auto_plays_each_policy_a_second_time(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["albert", "--gpus", "1", "--no-mig", "--hours", "0.5", "--policies", "budget"]
    assert main([*words, "--resident", "auto", "-o", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "budget+shared" in shown
    assert main([*words, "--device", "cpu"]) == 2
