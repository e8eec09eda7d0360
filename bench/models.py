"""The two queueing models against the simulator, on random configurations that meet their limit.

    python -m bench.models [--count N] [--rows N] [--json FILE]

Product form for one to three GPUs, mean field for ten to a hundred, loads of 0.3 to 0.9, limits of 1.3 to 3.5 times the
service of the largest variant on a whole GPU.  An exception is a p95 more than 5 % off, or a share more than a point.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from bench.common import show, write_json
from clover._native import des, queueing
from tests.reference.problems import random_counts, random_problem

P95 = 0.05
SHARE = 0.01
Model = Literal["pf", "mf"]
SIZES: dict[Model, tuple[int, ...]] = {"pf": (1, 2, 3), "mf": (10, 30, 100)}


@dataclass(frozen=True)
class Compared:
    """How far the model is from the simulation of one configuration: p95 and energy as a part, shares absolutely."""

    gpus: int
    load: float
    p95: float
    shares: float
    energy: float

    @property
    def agrees(self) -> bool:
        """Whether this is no exception."""
        return abs(self.p95) <= P95 and self.shares <= SHARE


def compare(model: Model, seed: int, gpus: int, rows: int) -> Compared | None:
    """One random configuration; None where the model says that it misses its limit."""
    draw = random.Random(seed)
    problem = random_problem(seed, gpus, model=model)
    counts = random_counts(problem, draw)
    load = draw.uniform(0.3, 0.9)
    rate = load * float((counts / problem.service_s).sum())
    figures = problem.service_s, problem.cv, problem.energy_j
    _, shares, energy_j, _, p95_s, _ = queueing.evaluate(*figures, problem.accuracy, counts, rate, model, 0.95)
    largest = next(g for g in reversed(problem.groups) if g.slice == "7g")
    if p95_s > draw.uniform(1.3, 3.5) * largest.service_ms * 1e-3:
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
    return Compared(
        gpus,
        load,
        p95_s / played.quantile(0.95) - 1.0,
        float(np.abs(shares - played.shares).max()),
        energy_j / played.energy_j_per_row - 1.0,
    )


def compare_many(model: Model, count: int, rows: int) -> list[Compared]:
    """`count` random configurations that meet their limit."""
    found: list[Compared] = []
    seed = 0
    while len(found) < count:
        seed += 1
        one = compare(model, seed, SIZES[model][seed % len(SIZES[model])], rows)
        if one is not None:
            found.append(one)
    return found


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
    write_json(given.json, {model: [asdict(one) for one in rows] for model, rows in told.items()})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
