"""`--scenario day`: a budget by mixes and by cascades, what is counted, and what is labelled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from clover.research.cli.simulate import main
from clover.research.simulate.page import page
from clover.research.simulate.records import ReplayStep, Results, Run, merged, summed
from clover.types import CascadeProfile
from tests.support.chain_points import POINTS
from tests.support.profiles_fixture import profile

pytestmark = pytest.mark.slow

HEADER = "datetime_utc,carbon_intensity_gco2_per_kwh\n"
GRID = (120.0, 90.0, 150.0, 300.0, 420.0, 380.0, 250.0, 100.0)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Eight hours of a grid for a family of two cores and one of the paper's would take long; the former is played."""
    folder = tmp_path_factory.mktemp("day")
    trace = folder / "grid.csv"
    lines = [f"2021-03-26T{hour:02d}:00:00Z,{value}" for hour, value in enumerate(GRID)]
    trace.write_text(HEADER + "\n".join(lines) + "\n")
    measured = msgspec.structs.replace(
        profile(), cascade=CascadeProfile(points=POINTS, quantiles={}, calibration_rows=5000, held_out_rows=5000)
    )
    family = folder / "toy.json"
    family.write_bytes(msgspec.json.encode(measured))
    words = [str(family), "--device", "cpu", "--scenario", "day", "--traces", str(trace), "--hours", "8"]
    words += ["--load", "constant:100/s", "--slo-ms", "30", "--accuracy-budget", "0.9", "-o", str(folder / "out")]
    assert main(words) == 0
    return msgspec.json.decode((folder / "out" / "results.json").read_bytes(), type=Results)


def by_policy(results: Results) -> dict[str, Run]:
    return {run.policy: run for run in results.runs}


def test_all_schemes_stand_in_one_table_and_the_report(results: Results) -> None:
    names = [item.policy for item in results.summaries]
    assert names[:6] == ["base", "clover", "budget", "static", "budget+cascade", "budget:flat+cascade"]
    assert names[6].startswith("static+cascade >= ")
    report = page(results)
    assert "budget+cascade" in report
    assert "turned" in report


def test_thresholds_move_configurations_hardly_and_the_budget_is_met(results: Results) -> None:
    run = by_policy(results)["budget+cascade"]
    assert run.sums.accuracy == pytest.approx(92.0 - 0.9, abs=0.1)
    assert run.sums.turned >= 2
    assert run.sums.still >= 0.9
    assert run.sums.turned == sum(step.turned for step in run.steps)
    assert any(step.chain for step in run.steps)
    assert run.sums.above == 0.0


def test_what_was_turned_was_worth_it(results: Results) -> None:
    saving = {item.policy: item.saving for item in results.summaries}
    fixed = next(name for name in saving if name.startswith("static+cascade"))
    assert saving["budget+cascade"] > max(saving["budget"], saving["static"], saving[fixed])
    assert by_policy(results)[fixed].sums.changes == 0
    margin = next(item.margin for item in results.summaries if item.policy == fixed)
    assert margin is not None
    assert margin < 0.0, "the static cascade saves less than what it is held against"


def test_cascades_have_no_limit_of_mixes(results: Results) -> None:
    assert by_policy(results)["budget+cascade"].limit_grams is None


def test_a_family_without_cascades_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["albert", "--scenario", "day", "--confidence", "none", "--hours", "1"]) == 2
    assert "albert has no profile of any" in capsys.readouterr().err


def a_step(at: int, **more: Any) -> ReplayStep:
    return ReplayStep(
        at_s=300.0 * at, seconds=300.0, g_per_kwh=100.0, rate=1.0, rows=300.0, accuracy=90.0, active_j=1.0, idle_j=1.0,
        active_grams=1.0, grams=2.0, p95_ms=1.0, awake=1, deployment="x", shares={"a": 1.0}, **more,
    )  # fmt: skip


def test_steps_put_together_still_count() -> None:
    steps = [a_step(0), a_step(1), a_step(2, turned=1, chain="a < 0.5 > b"), a_step(3, changes=1), a_step(4)]
    shorter = merged(steps)
    assert len(shorter) < len(steps)
    assert sum(step.looks for step in shorter) == len(steps)
    whole, short = summed(steps), summed(shorter)
    assert (whole.turned, whole.changes, whole.still) == (1, 1, 0.8)
    assert (short.turned, short.changes, short.still) == (1, 1, 0.8)


def test_a_parametric_confidence_is_labelled_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["albert", "--gpus", "1", "--policies", "static+cascade", "--hours", "1", "--accuracy-budget", "0.5"]
    assert main([*words, "-o", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "static+cascade [parametric]" in shown
    found = msgspec.json.decode((tmp_path / "results.json").read_bytes(), type=Results)
    assert {item.policy: item.confidence for item in found.summaries} == {"base": "", "static+cascade": "parametric"}
    assert any("PARAMETRIC" in item.about for item in found.manifest.inputs)
    assert "[parametric]" in page(found)
