"""The optimiser: how fast its kernels are, how near the best its answers come, how tight its bounds are.

    python -m bench.optimizer [speed] [exact] [gaps] [files FILE...] [--json FILE]

`speed`   evaluations a second of the annealing kernel at N = 10, 100, 1000 (mean field, all groups allowed, the tail
          looked at every time) beside its twin; requests a second of the simulator, plain, and with batches and routing
`exact`   the annealer alone against the enumerator on random problems of one to three GPUs, at least half of them with
          an optimum more than 2 % of the scale above every configuration with GPUs and variants alike
`gaps`    many seeds on random problems at N = 10, 100, 1000 in 50, 100, 300 ms of CPU time, against the best of a long
          multi-start
`files`   problem files: the answer of `python -m clover plan`, its gap to the file's best known, its bound

Without words: speed, exact and gaps.  Gaps are those of problem files.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from bench.common import show, write_json
from clover.research.problem import exact
from clover.research.problem.bound import bound
from clover.research.problem.file import ProblemFile, parse
from clover.research.problem.solve import forced, kernel_problem, solve
from tests.reference.problems import alike_gap, of_plain, plain_problem, random_problem

SIZES = ((10, 0.050, 0.002, 6), (100, 0.100, 0.005, 1), (1000, 0.300, 0.010, 1))
"""GPUs, seconds that the kernel gets, the gap that counts as found, coolings that share the seconds."""
HETEROGENEOUS = 0.02
TWINS = "tests.reference"
SPEED_PROBLEMS = 5
NEAR = 0.005


def main(argv: Sequence[str] | None = None) -> int:
    """Run the named parts; print tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.optimizer", description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", help="speed, exact, gaps, files FILE... [speed exact gaps]")
    parser.add_argument("--problems", type=int, default=10, help="problems a size of `gaps` [10]")
    parser.add_argument("--seeds", type=int, default=20, help="seeds a problem of `gaps` [20]")
    parser.add_argument("--reference-s", type=float, default=60.0, help="seconds of the multi-start of `gaps` [60]")
    parser.add_argument("--count", type=int, default=200, help="problems of `exact` [200]")
    parser.add_argument("--evaluations", type=int, default=100_000, help="of the annealer in `exact` [100000]")
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds a file of `files` [60]")
    parser.add_argument("--sizes", type=int, nargs="*", default=[10, 100, 1000], help="GPUs of speed and gaps")
    parser.add_argument("--json", default="", help="write the figures there")
    given = parser.parse_args(argv)
    words = given.parts or ["speed", "exact", "gaps"]
    if words[0] == "files":
        parts: dict[str, Callable[[], Any]] = {"files": lambda: files(words[1:], given.time_limit)}
    else:
        known: dict[str, Callable[[], Any]] = {
            "speed": lambda: speed(given.sizes),
            "exact": lambda: against_enumeration(given.count, given.evaluations),
            "gaps": lambda: gaps(given.sizes, given.problems, given.seeds, given.reference_s),
        }
        strange = [word for word in words if word not in known]
        if strange:
            parser.error(f"unknown part {strange[0]}: speed, exact, gaps, or files FILE...")
        parts = {word: known[word] for word in words}
    write_json(given.json, {name: part() for name, part in parts.items()})
    return 0


# --- problems ---------------------------------------------------------------------------------------------------------


def mixed_problems(gpus: int, count: int) -> list[ProblemFile]:
    """Return random problems of that size, of which annealing beats all GPUs and variants alike by more than 2 %."""
    found: list[ProblemFile] = []
    seed = 0
    while len(found) < count:
        problem = everything_fits(gpus, 90_000 + seed)
        seed += 1
        if exact.best(problem, exact.homogeneous(problem))[0] is None:
            continue
        if alike_gap(problem, forced(problem, seed=0, evaluations=200_000)[1]) > HETEROGENEOUS:
            found.append(problem)
    return found


def everything_fits(gpus: int, seed: int) -> ProblemFile:
    """Return a random problem of which every variant fits every slice, mean field."""
    plain = plain_problem(seed, gpus, variants=4)
    for group in plain["groups"]:
        group["fits"] = True
    return of_plain(plain)


# --- parts ------------------------------------------------------------------------------------------------------------


def speed(sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Return evaluations a second of kernel and twin; requests a second of the simulator and its twin."""
    kernel, twin = importlib.import_module("clover._native.anneal"), importlib.import_module(f"{TWINS}.anneal")
    rows: list[tuple[str, str, float, float]] = []
    for gpus in sizes:
        problems = mixed_problems(gpus, SPEED_PROBLEMS)
        fast, slow = _evaluations_s(kernel, problems, 300_000), _evaluations_s(twin, problems, 3_000)
        rows.append((f"annealer, N = {gpus}", "evaluations/s", fast, slow))
    for what, batches in (("simulator, plain", False), ("simulator, batches and quotas", True)):
        fast, slow = (
            _rows_s(f"{place}.des", batches, n) for place, n in (("clover._native", 2_000_000), (TWINS, 20_000))
        )
        rows.append((what, "requests/s", fast, slow))
    show(
        "Kernels on one core, beside their twins (CPU time)",
        ["what", "unit", "kernel", "twin", "times"],
        [[what, unit, fast, slow, fast / slow] for what, unit, fast, slow in rows],
    )
    return [dict(zip(("what", "unit", "kernel", "twin"), row, strict=True)) for row in rows]


def _evaluations_s(module: ModuleType, problems: Sequence[ProblemFile], evaluations: int) -> float:
    """Return evaluations a second over all of `problems`, so many of each."""
    made = [kernel_problem(problem, module) for problem in problems]
    began = time.process_time()
    done = sum(module.solve(problem, 1, 0.0, evaluations=evaluations).evaluations for problem in made)
    return float(done) / (time.process_time() - began)


def _rows_s(name: str, batches: bool, rows: int) -> float:
    """Return requests a second of 70 workers in three groups at a load of 0.8; with `batches`, of up to 8 rows, staged
    ahead, and dealt to two lanes by quota."""
    module = importlib.import_module(name)
    counts, single_s = [20, 30, 20], np.array([0.04, 0.02, 0.012])
    options: dict[str, Any] = {"law": "normal", "cv": [0.1, 0.2, 0.15], "rows": rows, "seed": 1}
    service_s = single_s[:, None]
    if batches:
        service_s = single_s[:, None] * (0.4 + 0.6 * np.arange(1, 9))[None, :]
        options |= {"lanes": [0, 0, 1], "shares": [0.6, 0.4], "credits": 2, "in_turn": True}
    rate = 0.8 * float((counts / single_s).sum())
    began = time.process_time()
    module.simulate(service_s, counts, module.poisson(rate), **options)
    return rows / (time.process_time() - began)


def against_enumeration(count: int, evaluations: int) -> dict[str, Any]:
    """Return the annealer alone against the proven optimum."""
    gaps_found: list[float] = []
    mixed = alike = seed = 0
    while mixed + alike < count:
        seed += 1
        gpus = 1 + seed % 3
        problem = random_problem(5000 + seed, gpus, model="pf" if seed % 2 else "mf")
        best = exact.enumerate_all(problem)
        if best.counts is None:
            continue
        hard = alike_gap(problem, best.f) > HETEROGENEOUS
        if not hard and alike >= count // 2:
            continue
        mixed, alike = mixed + hard, alike + (not hard)
        _, f = forced(problem, seed=seed, evaluations=evaluations)
        gaps_found.append((best.f - f) / problem.scale(best.f))
    near = sum(gap <= NEAR for gap in gaps_found)
    row = {"problems": count, "mixed": mixed, "near": near, "worst": max(gaps_found), "evaluations": evaluations}
    show(
        f"The annealer alone, {evaluations} evaluations, against the enumerator (N = 1 to 3)",
        ["problems", "optimum mixed", f"within {NEAR:.1%}", "worst gap"],
        [[count, mixed, near, f"{row['worst']:.3%}"]],
    )
    return row


def gaps(sizes: Sequence[int], problems: int, seeds: int, reference_s: float) -> list[dict[str, Any]]:
    """Compare many seeds with the best of a long multi-start, which starts from every seed's answer's problem anew."""
    rows = []
    for gpus, seconds, wanted, restarts in SIZES:
        if gpus not in sizes:
            continue
        found: list[float] = []
        for problem in mixed_problems(gpus, problems):
            short = [forced(problem, seed=n, cpu_s=seconds, restarts=restarts)[1] for n in range(seeds)]
            best = max([*short, _multi_start(problem, reference_s)])
            found.extend((best - f) / problem.scale(best) if math.isfinite(f) else math.inf for f in short)
        rows.append(
            {
                "gpus": gpus,
                "ms": seconds * 1e3,
                "within": wanted,
                "share": sum(gap <= wanted for gap in found) / len(found),
                "median": statistics.median(found),
                "worst": max(found),
            }
        )
    show(
        f"{seeds} seeds on {problems} problems a size, against the best of {reference_s:.0f} s of restarts",
        ["N", "ms", "within", "share of runs", "median gap", "worst gap"],
        [
            [r["gpus"], r["ms"], f"{r['within']:.1%}", f"{r['share']:.1%}", f"{r['median']:.3%}", f"{r['worst']:.3%}"]
            for r in rows
        ],
    )
    return rows


def _multi_start(problem: ProblemFile, seconds: float) -> float:
    """Return the best of annealing from many seeds, one second each; as those, it is timed by the CPU."""
    best, end, seed = -math.inf, time.thread_time() + seconds, 1_000_000
    while (left := end - time.thread_time()) > 0.0:
        best = max(best, forced(problem, seed=seed, cpu_s=min(1.0, left))[1])
        seed += 1
    return best


def files(names: Sequence[str], time_limit_s: float) -> list[dict[str, Any]]:
    """Return problem files, solved as the command does, with both bounds."""
    rows = []
    for name in names:
        text = Path(name).read_text()
        problem, known = parse(text), json.loads(text).get("best_known", {}).get("f")
        answer = solve(problem, time_limit_s=time_limit_s)
        end = time.monotonic() + min(10.0, time_limit_s)
        plain = bound(problem, incumbent=answer.f, stop=partial(_passed, end), highs=False)
        scale = problem.scale(answer.f)
        rows.append(
            {
                "file": Path(name).stem,
                "f": answer.f,
                "gap_to_known": None if known is None else (known - answer.f) / problem.scale(known),
                "gap_to_bound": answer.gap,
                "gap_without_highs": (plain.value - answer.f) / scale,
                "proof": answer.proof,
                "seconds": answer.seconds,
            }
        )
    show(
        "Problem files",
        ["file", "f", "gap to best known", "gap to bound", "without HiGHS", "bound by", "s"],
        [
            [
                row["file"],
                f"{row['f']:.8f}",
                "" if row["gap_to_known"] is None else f"{row['gap_to_known']:.3%}",
                f"{row['gap_to_bound']:.3%}",
                f"{row['gap_without_highs']:.3%}",
                row["proof"],
                row["seconds"],
            ]
            for row in rows
        ],
    )
    return rows


def _passed(end: float) -> bool:
    return time.monotonic() > end


if __name__ == "__main__":
    raise SystemExit(main())
