"""`python -m clover plan`: answers, files, exit codes; the annealer against the enumerator."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.errors import PlanError
from clover.research.cli.plan import main
from clover.research.problem import exact
from clover.research.problem import solve as solving
from clover.research.problem.file import Counts, ProblemFile, parse
from clover.research.problem.solve import Infeasible, forced, kernel_problem, solve
from clover.research.problem.verify import SimulationVerdict, verify
from tests.reference.problems import alike_gap, of_plain, plain_problem, random_counts, random_problem

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[4]
SAMPLES = sorted((ROOT.parent / "shared" / "problems").glob("*.json"))
FIELDS = {"config", "f", "p95_ms", "accuracy", "energy_j_per_request", "bound", "solver", "evaluations", "seconds"}
VERIFIED = {
    "verified",
    "verified_p95_ms",
    "verified_p95_half_width_ms",
    "verified_f",
    "verified_requests",
    "rejected",
    "rejected_f",
    "why",
}


@pytest.fixture(autouse=True)
def _no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line of progress on a slow machine, so that standard error has what tests expect of it."""
    monkeypatch.setattr("clover.cli.progress._IN_PIPE_S", (600.0, 600.0))


@pytest.fixture
def problem_file(tmp_path: Path) -> Path:
    path = tmp_path / "problem.json"
    path.write_text(json.dumps(plain_problem(FEASIBLE, 2)))
    return path


FEASIBLE = 2


def test_an_answer_is_printed_and_written(
    problem_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "answer.json"
    assert main([str(problem_file), "-o", str(target), "--time-limit", "2", "--seed", "3"]) == 0
    printed = capsys.readouterr()
    answer: dict[str, Any] = json.loads(target.read_text())
    assert set(answer) >= FIELDS
    for name in answer["config"]:
        assert name in printed.out
    assert f"{answer['f']:.8f}" in printed.out
    assert printed.err == ""
    problem = parse(problem_file.read_bytes())
    checked = exact.evaluate(problem, problem.counts(answer["config"]))
    assert checked.feasible
    assert answer["f"] == pytest.approx(checked.f, abs=1e-9)
    assert answer["p95_ms"] == pytest.approx(checked.p95_s * 1e3, rel=1e-6)
    assert answer["energy_j_per_request"] == pytest.approx(checked.energy_j, rel=1e-9)
    assert answer["accuracy"] == pytest.approx(checked.accuracy, rel=1e-9)
    assert answer["f"] < answer["bound"] == pytest.approx(answer["f"], abs=1e-11)
    assert "enumeration" in answer["proof"]
    assert set(answer) >= VERIFIED
    assert answer["verified"] is True
    assert (answer["rejected"], answer["why"]) == (0, "")
    assert answer["verified_p95_ms"] == pytest.approx(answer["p95_ms"], rel=0.05)
    assert 0.0 < answer["verified_p95_half_width_ms"] < 0.05 * answer["p95_ms"]
    assert f"{answer['verified_p95_ms']:.4g} ms" in printed.out


def test_json_instead_of_a_table(problem_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(problem_file), "--json", "--time-limit", "2"]) == 0
    assert set(json.loads(capsys.readouterr().out)) >= FIELDS


def test_it_is_a_command_of_clover(problem_file: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "clover", "plan", "-", "--json", "--time-limit", "1"],
        cwd=ROOT,
        input=problem_file.read_bytes(),
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["config"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"arrival_rate": 1e6}, "overloaded"),
        ({"sla_ms": 1e-3}, "keeps the SLA"),
        ({"partitions": [[1, 0, 0, 0, 0]], "_only": "7g"}, "no partition"),
    ],
)
def test_an_infeasible_problem_exits_3_with_the_reason(
    change: dict[str, Any], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = plain_problem(FEASIBLE, 2)
    only = change.pop("_only", "")
    for group in plain["groups"]:
        group["fits"] = group["fits"] and only in ("", group["slice"])
    path, target = tmp_path / "problem.json", tmp_path / "answer.json"
    path.write_text(json.dumps(plain | change))
    assert main([str(path), "-o", str(target), "--time-limit", "30"]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert reason in said.err
    assert not target.exists()


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["nowhere.json"], "nowhere.json"),
        (["FILE", "--time-limit", "0"], "--time-limit"),
        (["FILE", "--time-limit", "nan"], "--time-limit"),
        (["FILE", "--seed", "-1"], "--seed"),
        (["FILE", "--no-such"], "--no-such"),
        (["FILE", "--verify", "maybe"], "--verify"),
        (["FILE", "-o", "/nowhere/answer.json", "--time-limit", "1"], "/nowhere/answer.json"),
        ([], "PROBLEM.json"),
    ],
)
def test_what_cannot_be_read_exits_2(
    argv: list[str], reason: str, problem_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(problem_file) if word == "FILE" else word for word in argv]) == 2
    assert reason in capsys.readouterr().err


def test_a_fault_of_the_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = plain_problem(FEASIBLE, 2)
    plain["groups"][3]["service_ms"] = -1.0
    path = tmp_path / "problem.json"
    path.write_text(json.dumps(plain))
    assert main([str(path)]) == 2
    assert "groups[3].service_ms" in capsys.readouterr().err


def test_the_same_seed_gives_the_same_answer() -> None:
    problem = random_problem(FEASIBLE, 2)
    found = [forced(problem, seed=5, evaluations=3000) for _ in range(2)]
    assert found[0][1] == found[1][1]
    assert np.array_equal(found[0][0], found[1][0])


@pytest.mark.skipif(not SAMPLES, reason="the solved samples are not here")
@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_samples_are_solved(path: Path) -> None:
    problem, known = parse(path.read_bytes()), json.loads(path.read_text())["best_known"]
    answer = solve(problem, time_limit_s=2.0, clock=time.process_time)  # as much computing, whatever runs beside it
    assert exact.evaluate(problem, problem.counts(answer.config)).feasible
    assert (known["f"] - answer.f) / problem.scale(known["f"]) <= 0.005
    assert answer.bound is not None
    assert answer.bound >= known["f"]


def test_without_highs_the_answer_says_so() -> None:
    problem = random_problem(FEASIBLE, 12)
    answer = solve(problem, time_limit_s=0.5, highs=False, clock=time.process_time)
    assert answer.bound is not None
    assert answer.bound >= answer.f
    assert "analysis" in answer.proof


def test_the_annealer_alone_finds_what_enumeration_proves() -> None:
    """Problems of one to three GPUs, at least half of them with an optimum more than 2 % of the scale above every
    configuration with GPUs and variants alike."""
    mixed = alike = 0
    worst = 0.0
    for seed in range(1000):
        gpus = (1, 1, 2, 2, 2, 3)[seed % 6]
        if mixed + alike >= 18:
            break
        problem = random_problem(5000 + seed, gpus, variants=2 if gpus == 3 else 3, model="pf" if seed % 2 else "mf")
        best = exact.enumerate_all(problem)
        if best.counts is None:
            continue
        hard = alike_gap(problem, best.f) > 0.02
        if not hard and alike >= 9:
            continue
        mixed, alike = mixed + hard, alike + (not hard)
        _, f = forced(problem, seed=seed, evaluations=100_000)
        worst = max(worst, (best.f - f) / problem.scale(best.f))
    assert mixed >= 9
    assert worst <= 0.005


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 100_000),
    gpus=st.sampled_from([1, 2, 3, 10, 25]),
    model=st.sampled_from(["pf", "mf"]),
    load=st.floats(0.05, 0.999),
)
def test_kernel_and_enumerator_agree(seed: int, gpus: int, model: str, load: float) -> None:
    """Two evaluations that share nothing but the formulas."""
    counts = random_counts(random_problem(seed, gpus), random.Random(seed))
    service_s = random_problem(seed, gpus).service_s
    rate = load * float((counts / service_s).sum())
    problem = of_plain(plain_problem(seed, gpus, model=model) | {"arrival_rate": rate})
    ours = exact.evaluate(problem, counts)
    feasible, f = kernel_problem(problem).score(counts)
    assert f == pytest.approx(ours.f, abs=1e-9)
    if abs(ours.p95_s / problem.sla_s - 1.0) > 1e-6:
        assert feasible == ours.feasible


# --- verification -----------------------------------------------------------------------------------------------------

WRONG, OPTIMISTIC = 4, 37
"""Of one GPU: the mean field's best has unequal workers, whose shares it gets wrong; the product form's best has a p95
that is 5 % higher by simulation."""


def optimistic() -> ProblemFile:
    """The limit lies between the two p95s of the best configuration."""
    plain = plain_problem(OPTIMISTIC, 1, model="pf")
    problem = of_plain(plain)
    found = verify(problem, problem.counts(solve(problem, time_limit_s=2.0, verification="off").config))
    assert found.quantile_s > 1.03 * found.model_quantile_s
    return of_plain(plain | {"sla_ms": 0.5e3 * (found.quantile_s + found.model_quantile_s)})


def test_a_rejected_answer_is_given_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is best under the model stays the answer."""
    path = tmp_path / "problem.json"
    path.write_text(json.dumps(plain_problem(WRONG, 1)))
    assert main([str(path), "--json", "--time-limit", "2", "--verify", "off"]) == 0
    quiet = capsys.readouterr()
    unasked = json.loads(quiet.out)
    assert quiet.err == ""
    assert unasked["verified"] is None
    assert unasked["verified_p95_ms"] is None
    assert main([str(path), "--json", "--time-limit", "2"]) == 0
    loud = capsys.readouterr()
    answer = json.loads(loud.out)
    assert answer["verified"] is False
    assert answer["rejected"] == 1
    assert answer["rejected_f"] == answer["f"] == unasked["f"]
    assert answer["config"] == unasked["config"]
    assert "share of" in answer["why"]
    assert loud.err == f"clover plan: warning: NOT VERIFIED: {answer['why']}\n"
    assert main([str(path), "--time-limit", "2"]) == 0
    assert "verified   NO: it keeps the SLA, but the model's share of" in capsys.readouterr().out


def test_strict_gives_one_that_is_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "problem.json"
    path.write_text(json.dumps(plain_problem(WRONG, 1)))
    assert main([str(path), "--json", "--time-limit", "8", "--verify", "strict"]) == 0
    told = capsys.readouterr()
    answer = json.loads(told.out)
    assert told.err == ""
    assert answer["verified"] is True
    assert answer["rejected"] >= 1
    assert answer["f"] < answer["rejected_f"] <= answer["bound"]
    assert "share of" in answer["why"]  # of the one it stands in for
    problem = random_problem(WRONG, 1)
    assert verify(problem, problem.counts(answer["config"])).accepted
    assert main([str(path), "--time-limit", "8", "--verify", "strict"]) == 0
    assert "instead of" in capsys.readouterr().out


@pytest.mark.parametrize("whole", [True, False], ids=["enumerated", "annealed"])
def test_strict_keeps_the_sla_in_the_simulation(whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = optimistic()
    if not whole:
        monkeypatch.setattr(solving, "_size", lambda problem: math.inf)
    best = solve(problem, time_limit_s=2.0)
    assert best.verified is False
    assert "exceed the SLA" in best.why
    answer = solve(problem, time_limit_s=4.0, verification="strict")
    assert answer.verified
    assert answer.f < best.f
    assert answer.rejected_f == best.f
    assert answer.bound is not None
    assert answer.bound >= best.f  # it stays the model's
    assert exact.evaluate(problem, problem.counts(answer.config)).feasible
    assert answer.verified_p95_ms is not None
    assert answer.verified_p95_half_width_ms is not None
    assert answer.verified_p95_ms - answer.verified_p95_half_width_ms <= problem.sla_ms


def test_strict_says_so_where_nothing_is_accepted(
    problem_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[int, ...]] = []

    def never(problem: ProblemFile, counts: Counts) -> SimulationVerdict:
        asked.append(tuple(counts.tolist()))
        return replace(verify(problem, counts, most_rows=500_000), agrees=False, why="for no reason")

    monkeypatch.setattr(solving, "verify", never)
    assert main([str(problem_file), "--verify", "strict", "--time-limit", "6"]) == 3
    told = capsys.readouterr()
    assert told.out == ""
    assert "for no reason" in told.err
    assert len(set(asked)) == len(asked) > 1  # each but once


def test_infeasibility_is_an_error_of_planning() -> None:
    assert issubclass(Infeasible, PlanError)
    with pytest.raises(Infeasible):
        solve(of_plain(plain_problem(FEASIBLE, 2) | {"arrival_rate": 1e6}))
    assert math.isinf(exact.enumerate_all(of_plain(plain_problem(FEASIBLE, 2) | {"arrival_rate": 1e6})).f)
