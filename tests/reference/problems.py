"""Random problems for tests and benches.

A100s; each variant is more expensive and better than the one before, and each larger slice speeds it up less.
"""

from __future__ import annotations

import random
from typing import Any

import msgspec
import numpy as np

from clover.research.problem import exact
from clover.research.problem.file import ProblemFile, parse

SLICES = ("1g", "2g", "3g", "4g", "7g")
PARTITIONS = (
    (0, 0, 0, 0, 1),
    (0, 0, 1, 1, 0),
    (0, 0, 2, 0, 0),
    (0, 2, 1, 0, 0),
    (1, 1, 0, 1, 0),
    (1, 1, 1, 0, 0),
    (1, 3, 0, 0, 0),
    (2, 1, 1, 0, 0),
    (3, 0, 0, 1, 0),
    (3, 0, 1, 0, 0),
    (3, 2, 0, 0, 0),
    (4, 0, 1, 0, 0),
    (5, 1, 0, 0, 0),
    (7, 0, 0, 0, 0),
)
"""Return the maximal slice multisets of an A100."""


def plain_problem(seed: int, n_gpus: int, *, variants: int = 3, model: str = "mf") -> dict[str, Any]:
    """Return a random problem as decoded JSON."""
    draw = random.Random(seed)
    groups = []
    service_ms, accuracy = draw.uniform(15.0, 60.0), draw.uniform(72.0, 82.0)
    for number in range(variants):
        cv, widest = draw.uniform(0.0, 0.3), draw.uniform(2.0, 7.5) + 2.0 * number
        watts = draw.uniform(20.0, 35.0)
        cut_off = number == variants - 1 and draw.random() < 0.5
        for name in SLICES:
            slices = int(name[0])
            speed = min(slices ** draw.uniform(0.85, 1.0), widest)
            mean_ms = service_ms / speed
            groups.append(
                {
                    "variant": f"v{number}",
                    "slice": name,
                    "service_ms": round(mean_ms, 4),
                    "cv": round(cv, 3) if draw.random() < 0.95 else 0.0,
                    "energy_j": round(mean_ms * 1e-3 * watts * speed**0.95 * draw.uniform(0.9, 1.1), 5),
                    "accuracy": round(accuracy, 3),
                    "fits": not (cut_off and name == "1g"),
                }
            )
        service_ms *= draw.choice([draw.uniform(1.2, 2.0), draw.uniform(2.0, 5.0)])
        accuracy += draw.uniform(0.8, 5.0)
    largest = groups[-1]
    # From a third of what the best variant serves on whole GPUs to twice that: often more than it can do alone.
    rate = draw.uniform(0.35, 2.0) * n_gpus / (largest["service_ms"] * 1e-3)
    idle_w = 60.0
    return {
        "schema": "clover-problem/1",
        "id": f"random-{seed}",
        "seed": seed,
        "model": model,
        "n_gpus": n_gpus,
        "arrival_rate": round(rate, 6),
        "quantile": 0.95,
        "sla_ms": round(largest["service_ms"] * draw.uniform(1.3, 3.5), 4),
        "carbon_intensity": round(draw.uniform(60.0, 450.0), 1),
        "ci_base": 250.0,
        "pue": 1.5,
        "idle_w_per_gpu": idle_w,
        "base": {
            "energy_j_per_request": round(largest["energy_j"] + idle_w * n_gpus / rate, 5),
            "accuracy": largest["accuracy"],
        },
        "groups": groups,
        "partitions": [list(row) for row in PARTITIONS],
        "partition_slices": list(SLICES),
        "lambda": round(draw.uniform(0.02, 0.15), 3),
    }


def of_plain(value: Any) -> ProblemFile:
    """Return the problem in decoded JSON.  Raises ConfigError."""
    return parse(msgspec.json.encode(value))


def random_problem(seed: int, n_gpus: int, *, variants: int = 3, model: str = "mf") -> ProblemFile:
    """Return a random problem, perhaps one without a feasible configuration."""
    return of_plain(plain_problem(seed, n_gpus, variants=variants, model=model))


def random_counts(problem: ProblemFile, draw: random.Random) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return a random configuration [groups] that tiles, whatever its loads and limits."""
    counts = np.zeros(len(problem.groups), dtype=np.int64)
    for _ in range(problem.n_gpus):
        row = problem.usable[draw.randrange(len(problem.usable))]
        for at, number in enumerate(row):
            hosts = np.flatnonzero((problem.slice_of == at) & problem.fits)
            for _ in range(number):
                counts[draw.choice(hosts)] += 1
    return counts


def alike_gap(problem: ProblemFile, best: float) -> float:
    """Return how far the best configuration with all GPUs and variants alike lies below f = `best`.

    In the gap's scale; infinite if none is feasible.
    """
    _, f = exact.best(problem, exact.homogeneous(problem))
    return float("inf") if f == -float("inf") else (best - f) / problem.scale(best)
