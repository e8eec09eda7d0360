"""A controller that is wrong about its world: hidden truths, lost GPUs, and what the judge of `bench.week` minds."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from bench.week import SITUATIONS, Judge, Options, case_of, parsed
from clover.errors import ConfigError
from clover.planning.model.problem import services_of
from clover.research.cli.simulate import main
from clover.research.simulate import families, loads, replay, surprises, world
from clover.research.simulate.records import Run
from clover.research.simulate.surprises import LostDevice, Surprises
from clover.research.simulate.world import Case, Rules, World
from clover.types import GroupCount, Routing

HOUR_S = 3600.0


def case(rules: Rules, *, gpus: int = 2, load: str = "constant:0.35", hours: float = 1.0) -> Case:
    machine = world.gpus(gpus)
    own = World(machine, families.load("efficientnet", machine.shapes), rules)
    return Case(own, world.traces(("static:100",), "", hours)[0], loads.parse(load), world.scheme("objective"), 0)


def judged(played: Case) -> tuple[Run, Judge]:
    judge = Judge(played)
    return replay.play(played, judge), judge


def test_a_truth_is_the_profile_times_its_factors() -> None:
    machine = world.gpus(1)
    profile = families.load("albert", machine.shapes).profile
    by = surprises.factors(profile, 0.5, 3)
    assert by == surprises.factors(profile, 0.5, 3) != surprises.factors(profile, 0.5, 4)
    assert all(0.5 <= factor <= 1.5 for both in by.values() for factor in both)
    found = surprises.truth(profile, by)
    for before, after in zip(profile.latency, found.latency, strict=True):
        slower, dearer = by[before.variant]
        assert after.mean_ms == pytest.approx(before.mean_ms * slower)
        assert after.energy_j_per_row == pytest.approx(before.energy_j_per_row * dearer)


def test_workers_serve_by_the_truth_and_report_it() -> None:
    played = case(Rules(surprises=Surprises(misprofiled=0.5)))
    slower, dearer = surprises.factors(played.world.known.profile, 0.5, 0)["efficientnet-b7"]
    whole = (GroupCount(variant="efficientnet-b7", profile="7g.40gb", count=2),)
    (work,) = played.world.model(306.3).flow(whole, Routing(shares={"efficientnet-b7": 1.0}), 5.0).work
    believed = services_of(played.world.known.profile)["efficientnet-b7", "7g.40gb"]
    assert work.rows == pytest.approx(5.0)
    assert work.batch_s == pytest.approx(believed.seconds(work.batch) * slower)
    assert work.joules == pytest.approx(work.expected_j * dearer)
    assert (slower, dearer) != (1.0, 1.0)


def test_a_lost_gpu_serves_nothing_and_comes_back() -> None:
    lost = LostDevice(0, 1200.0, 1200.0)
    rules = Rules(noise=False, look_s=60.0, reference_g_per_kwh=250.0, surprises=Surprises(lost=(lost,)))
    run, judge = judged(case(rules))
    words = [step.deployment for step in run.steps]
    assert all(deployment != words[19] for deployment in words[20:39])
    assert judge.changes
    assert sum(step.rows for step in run.steps) == pytest.approx(sum(step.rate * step.seconds for step in run.steps))
    assert not [item for item in judge.found if item.kind in ("worse", "late")]


def test_a_change_keeps_the_slo_on_the_way(tmp_path: Path) -> None:
    """All workers but one GPU's would be missing for ten seconds if all that changes were exchanged at once."""
    trace = tmp_path / "falls.csv"
    trace.write_text(
        "datetime_utc,carbon_intensity_gco2_per_kwh\n2024-06-05T00:00Z,400\n2024-06-05T01:00Z,100\n2024-06-05T02:00Z,100\n"
    )
    rules = Rules(noise=False, look_s=60.0, load_s=10.0, reference_g_per_kwh=250.0)
    played = case(rules, load="constant:0.5")
    falls = replace(played, trace=world.traces((str(trace),), "", 1.25)[0])
    run, judge = judged(falls)
    assert run.sums.changes == 1
    assert not judge.found
    assert any("helps out on the way" in step.reason for step in run.steps)


def test_surges_are_every_third_hour() -> None:
    rates = loads.parse("surges:0.4").rates(100.0, 0.0, 1800.0, 12, 0)
    assert rates == [40.0] * 4 + [100.0] * 2 + [40.0] * 4 + [100.0] * 2


@pytest.mark.parametrize("text", ["", "1", "1@2", "x@1+1", "2@1+1", "0@-1+1", "0@1+0", "0@1+inf"])
def test_a_lost_gpu_is_given_as_gpu_from_and_hours(text: str) -> None:
    assert surprises.parse_lost("1@12+3", 2) == LostDevice(1, 12 * HOUR_S, 3 * HOUR_S)
    with pytest.raises(ConfigError, match="--lost-gpu"):
        surprises.parse_lost(text, 2)


def test_every_combination_is_a_case() -> None:
    both = case_of(Options("efficientnet", 2, 1.0, 300.0, "objective", 0), ("profile", "device"))
    assert both.world.rules.surprises.misprofiled == 0.5
    assert len(both.world.rules.surprises.lost) == 1
    assert not case_of(Options("efficientnet", 2, 1.0, 300.0, "objective", 0), ()).world.rules.surprises.any


def test_a_combination_is_named_in_any_order() -> None:
    assert parsed("device+load") == ("load", "device")
    assert parsed("none") == ()
    assert parsed("+".join(SITUATIONS)) == SITUATIONS
    with pytest.raises(argparse.ArgumentTypeError, match="moon is none of"):
        parsed("load+moon")


@pytest.mark.slow
def test_a_report_says_what_the_controller_did_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["albert", "--policies", "objective+mix", "--hours", "1", "--exact-rate", "-o", str(tmp_path)]
    assert main([*words, "--misprofiled", "50", "--lost-gpu", "1@0.5+0.25"]) == 0
    found = msgspec.json.decode((tmp_path / "results.json").read_bytes())
    labels = " ".join(found["manifest"]["labels"])
    assert "factors of up to 50 % more" in labels
    assert "GPU 1 does not answer from hour 0.5 on, for 0.25 h" in labels
    assert all("limit_grams" not in run or run["limit_grams"] is None for run in found["runs"])
    assert main([*words, "--minutes", "1", "--misprofiled", "50"]) == 2
    assert "leave out --minutes" in capsys.readouterr().err
