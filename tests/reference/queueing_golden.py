"""Writes tests/native/queueing_golden.json: the queueing model in 60 digits, straight from its definition.

Run `python -m tests.reference.queueing_golden` (needs mpmath, which comes with torch).  Nothing here is shared with the
kernel or its twin: elementary symmetric polynomials are multiplied out, Erlang's formula is summed, roots are bisected.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mpmath as mp

OUT = Path(__file__).resolve().parents[1] / "native" / "queueing_golden.json"
mp.mp.dps = 60

CASES: list[dict[str, Any]] = [
    {"name": "one worker", "groups": [(0.02, 0.2, 1.0, 80.0, 1)], "rho": 0.5},
    {"name": "one worker, cv 0", "groups": [(0.02, 0.0, 1.0, 80.0, 1)], "rho": 0.5},
    {"name": "one worker, nearly full", "groups": [(0.02, 1.0, 1.0, 80.0, 1)], "rho": 0.999},
    {
        "name": "three kinds of workers",
        "groups": [
            (0.0269, 0.213, 0.85, 81.1, 4),
            (0.0199, 0.283, 0.99, 84.0, 0),
            (0.0413, 0.159, 3.35, 86.3, 6),
            (0.1427, 0.159, 3.7, 86.3, 2),
        ],
        "rho": 0.7,
    },
    {
        "name": "three kinds of workers, nearly full",
        "groups": [(0.0269, 0.213, 0.85, 81.1, 4), (0.0413, 0.159, 3.35, 86.3, 6), (0.1427, 0.159, 3.7, 86.3, 2)],
        "rho": 0.999,
    },
    {
        "name": "cv 0, and the quantile at a step",
        "groups": [(0.01, 0.0, 1.0, 70.0, 3), (0.05, 0.0, 2.0, 75.0, 3), (0.2, 0.0, 4.0, 80.0, 8)],
        "rho": 0.3,
    },
    {
        "name": "cv 0 beside cv 1",
        "groups": [(0.01, 0.0, 1.0, 70.0, 3), (0.05, 1.0, 2.0, 75.0, 3)],
        "rho": 0.8,
    },
    {"name": "a thousand times slower", "groups": [(0.001, 0.3, 1.0, 70.0, 2), (1.0, 0.1, 9.0, 90.0, 5)], "rho": 0.6},
    {"name": "hardly any load", "groups": [(0.02, 0.2, 1.0, 80.0, 5), (0.1, 0.2, 3.0, 90.0, 5)], "rho": 1e-6},
    {"name": "median", "groups": [(0.02, 0.2, 1.0, 80.0, 5), (0.1, 0.2, 3.0, 90.0, 5)], "rho": 0.5, "quantile": 0.5},
    {"name": "p99.9", "groups": [(0.02, 0.2, 1.0, 80.0, 5), (0.1, 0.2, 3.0, 90.0, 5)], "rho": 0.5, "quantile": 0.999},
    {
        "name": "212 workers",
        "groups": [
            (0.0416, 0.058, 1.12, 83.9, 7),
            (0.1478, 0.04, 3.48, 85.4, 9),
            (0.0472, 0.04, 3.35, 85.4, 100),
            (0.0404, 0.04, 3.74, 85.4, 96),
        ],
        "rho": 0.983,
    },
    *(
        {
            "name": f"7,000 workers at {rho}",
            "groups": [(0.02, 0.2, 1.0, 80.0, 6960), (2.0, 0.2, 9.0, 90.0, 40)],
            "rho": rho,
        }
        for rho in (0.6, 0.95, 0.999)
    ),
    {"name": "7,000 workers alike", "groups": [(0.02, 0.1, 1.0, 80.0, 7000)], "rho": 0.999},
]


def phi(x: Any) -> Any:
    return mp.ncdf(x)


def tail(t: Any, groups: Any, s0: Any, s1: Any, wait: Any, drain: Any) -> Any:
    total = mp.mpf(0)
    for (service, cv, *_), idle, busy in zip(groups, s0, s1, strict=True):
        ahead, spread = t - service, cv * service
        if spread == 0:
            longer = mp.mpf(ahead < 0)
            waited = mp.mpf(1) if ahead < 0 else mp.exp(-drain * ahead)
        else:
            z = ahead / spread
            longer = phi(-z)
            waited = longer + mp.exp(-drain * ahead + (drain * spread) ** 2 / 2) * phi(z - drain * spread)
        total += (1 - wait) * idle * longer + wait * busy * waited
    return total


def bisect(f: Any, low: Any, high: Any) -> Any:
    """Return the least x with f(x) <= 0, f falling."""
    for _ in range(200):
        middle = (low + high) / 2
        if f(middle) > 0:
            low = middle
        else:
            high = middle
    return high


def mean_field(groups: Any, rate: Any) -> tuple[Any, Any]:
    gap = bisect(lambda y: sum(n / (y + s) for s, *_, n in groups) - rate, mp.mpf(0), mp.mpf(10) ** 12)
    servers = sum(n for *_, n in groups)
    load = rate / sum(n / s for s, *_, n in groups) * servers
    inverse, term = mp.mpf(1), mp.mpf(1)
    for i in range(servers):
        term *= (servers - i) / load
        inverse += term
    rho = load / servers
    return [n / (gap + s) / rate for s, *_, n in groups], 1 / ((1 - rho) * inverse + rho)


def symmetric(loads: Any) -> list[Any]:
    """Return the elementary symmetric polynomials, group by group by the binomial theorem."""
    product = [mp.mpf(1)]
    for load, n in sorted(loads, key=lambda pair: -pair[1]):
        if product == [1]:
            product = [mp.binomial(n, i) * load**i for i in range(n + 1)]
            continue
        for _ in range(n):
            product = [
                (product[j] if j < len(product) else 0) + (load * product[j - 1] if j else 0)
                for j in range(len(product) + 1)
            ]
    return product


def product_form(groups: Any, rate: Any) -> tuple[Any, Any]:
    loads = [(rate * s, n) for s, *_, n in groups]
    servers = sum(n for _, n in loads)
    rho = rate / sum(n / s for s, *_, n in groups)
    factorial = [mp.mpf(1)]
    for i in range(1, servers + 1):
        factorial.append(factorial[-1] * i)
    e = symmetric(loads)
    full = e[servers] / (1 - rho)
    wait = full / (sum(e[j] * factorial[servers - j] for j in range(servers)) + full)
    shares = []
    for k, (_, n) in enumerate(loads):
        if n == 0:
            shares.append(mp.mpf(0))
            continue
        less = symmetric([(load, number - (i == k)) for i, (load, number) in enumerate(loads)])
        shares.append(n * sum(less[j] * factorial[servers - j - 1] for j in range(servers)))
    return [share / sum(shares) for share in shares], wait


def solve(case: dict[str, Any], model: str) -> dict[str, Any]:
    quantile = case.get("quantile", 0.95)
    exact = [(mp.mpf(s), mp.mpf(cv), mp.mpf(e), mp.mpf(a), n) for s, cv, e, a, n in case["groups"]]
    capacity = sum(n / s for s, *_, n in exact)
    rate = float(case["rho"] * capacity)
    a = mp.mpf(rate)
    s1 = [n / s / capacity for s, *_, n in exact]
    s0, wait = (mean_field if model == "mf" else product_form)(exact, a)
    drain = 2 * (capacity - a) / (1 + sum(share * cv**2 for share, (_, cv, *_) in zip(s1, exact, strict=True)))
    system = (exact, s0, s1, wait, drain)
    p95 = bisect(lambda t: tail(t, *system) - (1 - mp.mpf(quantile)), mp.mpf(0), mp.mpf(10) ** 4)
    shares = s0 if model == "mf" else [(1 - wait) * x + wait * y for x, y in zip(s0, s1, strict=True)]
    times = [float(x) for x in (p95 / 2, p95 * mp.mpf("1.01"), p95 * 3)]
    return {
        "name": f"{case['name']} ({model})",
        "model": model,
        "rate": rate,
        "quantile": quantile,
        **{
            key: [group[i] for group in case["groups"]]
            for i, key in enumerate(("service_s", "cv", "energy_j", "accuracy", "counts"))
        },
        "expected": {
            "shares": [float(share) for share in shares],
            "energy_j": float(sum(share * group[2] for share, group in zip(shares, exact, strict=True))),
            "accuracy": float(sum(share * group[3] for share, group in zip(shares, exact, strict=True))),
            "p95_s": float(p95),
            "p_wait": float(wait),
            "tail": [[t, float(tail(mp.mpf(t), *system))] for t in times],
        },
    }


def main() -> None:
    rows = [json.dumps(solve(case, model)) for case in CASES for model in ("mf", "pf")]
    OUT.write_text("[\n" + ",\n".join(rows) + "\n]\n")


if __name__ == "__main__":
    main()
