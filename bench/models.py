"""The two queueing models against the simulator, on random configurations that meet their limit, and the verify step.

    python -m bench.models [--count N] [--rows N] [--json FILE]

Product form for one to three GPUs, mean field for ten to a hundred, loads of 0.3 to 0.9, limits of 1.3 to 3.5 times the
service of the largest variant on a whole GPU.  An exception is a p95 more than 5 % off, or a share more than a point.

Every configuration also goes through the verify step of `clover plan`, with its own seeds and no more requests than it
takes for itself.  It has to reject every exception.  A false rejection is one of a configuration that is no exception
and, by the long simulation, keeps its limit.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import msgspec
import numpy as np

from bench.common import show, write_json
from clover._native import des, queueing
from clover.research.problem.verify import verify
from tests.reference.problems import random_counts, random_problem

P95 = 0.05
SHARE = 0.01
Model = Literal["pf", "mf"]
SIZES: dict[Model, tuple[int, ...]] = {"pf": (1, 2, 3), "mf": (10, 30, 100)}


@dataclass(frozen=True)
class Compared:
    """How far the model is from the simulation of one configuration: p95 and energy as a part, shares absolutely; how
    far the simulated p95 is above the limit, as a part; what the verify step says, if it was asked."""

    seed: int
    gpus: int
    load: float
    p95: float
    shares: float
    energy: float
    over: float
    accepted: bool | None = None
    verify_p95: float | None = None
    verify_rows: int = 0
    why: str = ""

    @property
    def agrees(self) -> bool:
        """Whether this is no exception."""
        return abs(self.p95) <= P95 and self.shares <= SHARE

    @property
    def good(self) -> bool:
        """Whether there is nothing to reject."""
        return self.agrees and self.over <= 0.0


def compare(model: Model, seed: int, gpus: int, rows: int, verifying: bool = False) -> Compared | None:
    """Return one random configuration; None if the model says that it misses its limit."""
    draw = random.Random(seed)
    problem = random_problem(seed, gpus, model=model)
    counts = random_counts(problem, draw)
    load = draw.uniform(0.3, 0.9)
    rate = load * float((counts / problem.service_s).sum())
    figures = problem.service_s, problem.cv, problem.energy_j
    _, shares, energy_j, _, p95_s, _ = queueing.evaluate(*figures, problem.accuracy, counts, rate, model, 0.95)
    largest = next(g for g in reversed(problem.groups) if g.slice == "7g")
    limit_ms = draw.uniform(1.3, 3.5) * largest.service_ms
    if p95_s > limit_ms * 1e-3:
        return None
    played = des.simulate(
        problem.service_s,
        counts,
        des.poisson(rate),
        rows=rows,
        seed=seed,
        law="normal",
        cv=problem.cv,
        energy_j=problem.energy_j,
        warm_up=rows // 50,
    )
    played_s = played.quantile(0.95)
    compared = Compared(
        seed,
        gpus,
        load,
        p95_s / played_s - 1.0,
        float(np.abs(shares - played.shares).max()),
        energy_j / played.energy_j_per_row - 1.0,
        played_s / (limit_ms * 1e-3) - 1.0,
    )
    if not verifying:
        return compared
    told = verify(msgspec.structs.replace(problem, arrival_rate=rate, sla_ms=limit_ms, quantile=0.95), counts)
    return replace(
        compared,
        accepted=told.accepted,
        verify_p95=told.model_quantile_s / told.quantile_s - 1.0,
        verify_rows=told.rows,
        why=told.why,
    )


def compare_many(model: Model, count: int, rows: int) -> list[Compared]:
    """Compare `count` random configurations that meet their limit."""
    found: list[Compared] = []
    seed = 0
    while len(found) < count:
        seed += 1
        one = compare(model, seed, SIZES[model][seed % len(SIZES[model])], rows, verifying=True)
        if one is not None:
            found.append(one)
    return found


def _rejected(some: Sequence[Compared]) -> tuple[int, int]:
    """Return how many there are, and how many the verify step rejects."""
    return len(some), sum(not one.accepted for one in some)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.models", description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=200, help="configurations a model [200]")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows a simulation [1000000]")
    parser.add_argument("--json", default="", help="write the figures there")
    given = parser.parse_args(argv)
    told = {model: compare_many(model, given.count, given.rows) for model in SIZES}
    show(
        f"Queueing models against {given.rows:,} simulated rows, {given.count} configurations each",
        ["model", "N", "agree", "worst p95", "worst share", "worst energy", "N of the exceptions"],
        [
            [
                model,
                ", ".join(map(str, SIZES[model])),
                sum(one.agrees for one in rows),
                f"{max((one.p95 for one in rows), key=abs):+.1%}",
                f"{max(one.shares for one in rows):.2%}",
                f"{max((one.energy for one in rows), key=abs):+.2%}",
                ", ".join(str(one.gpus) for one in rows if not one.agrees),
            ]
            for model, rows in told.items()
        ],
    )
    show(
        "The verify step, with seeds of its own",
        [
            "model",
            "exceptions",
            "rejected",
            "p95 over the limit",
            "rejected",
            "good ones",
            "rejected",
            "median rows",
            "most",
        ],
        [
            [
                model,
                *_rejected([one for one in rows if not one.agrees]),
                *_rejected([one for one in rows if one.agrees and not one.good]),
                *_rejected([one for one in rows if one.good]),
                f"{statistics.median(one.verify_rows for one in rows):,.0f}",
                f"{max(one.verify_rows for one in rows):,}",
            ]
            for model, rows in told.items()
        ],
    )
    for model, rows in told.items():
        for one in rows:
            if not (one.good and one.accepted):
                verdict = "accepted" if one.accepted else f"rejected: {one.why}"
                print(
                    f"{model} N={one.gpus} seed {one.seed} load {one.load:.2f}: model's p95 {one.p95:+.2%}, shares "
                    f"{one.shares:.2%} off; simulated p95 {one.over:+.2%} from the limit; {verdict}"
                )
    write_json(given.json, {model: [asdict(one) for one in rows] for model, rows in told.items()})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
