"""Cascades as the planner predicts them, against the server's router row by row: p95 of drawn configurations.

    python -m bench.stages [--n 100] [--rows 60000] [--seed 0] [--json FILE]

Each configuration has two or three stages of one to four workers on one or two kinds of slices, batches of up to 32
rows, service times that vary, a part of the rows that goes on from each stage, and a load of up to 0.85 of its capacity
in each; which stage is the busy one is left to chance.  `model` is the p95 that plans are judged by
(`clover.planning.cascade.evaluation`), `rows` that of single rows that arrive as a Poisson stream before the production
router, batcher and escalation, with workers that only take time (`tests.support.row_by_row`).  An exception is a
configuration whose p95 the model misses by more than 10 %.  Everything here is modelled.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from bench.common import show, write_json
from clover.planning.cascade.evaluation import play_latencies_ms
from clover.planning.model.queueing import Service, lane_of
from tests.support import row_by_row

APART = 0.10
MOST_LOAD = 0.85
_KNOWN = 0.03
_MOST_ROWS = 300_000
_BLOCKS = 20
_QUANTILES = (("median", 0.5), ("p75", 0.75), ("p90", 0.9), ("p95", 0.95), ("most", 1.0))


@dataclass(frozen=True)
class Drawn:
    """A cascade on a configuration: the workers of each stage, rows a second, the part asked of each stage and the load
    of each over its capacity."""

    stages: tuple[tuple[Service, ...], ...]
    rate: float
    reach: tuple[float, ...]
    loads: tuple[float, ...]


@dataclass(frozen=True)
class Compared:
    """One configuration: its p95 (ms) as the model and the router's `rows` say, with the half-width of the latter
    (95 %, by batch means)."""

    workers: tuple[int, ...]
    loads: tuple[float, ...]
    reach: tuple[float, ...]
    rows: int
    model_ms: float
    rows_ms: float
    half_width_ms: float

    @property
    def apart(self) -> float:
        """The model's p95 less the router's, as a part of the latter."""
        return self.model_ms / self.rows_ms - 1.0


class _Routed(NamedTuple):
    """Milliseconds."""

    p95_ms: float
    half_width_ms: float


def draw(rng: random.Random) -> Drawn:
    """Return a configuration by chance."""
    rate = math.exp(rng.uniform(math.log(20.0), math.log(5000.0)))
    stages, reach, loads = [], [1.0], []
    for at in range(rng.choice((2, 3))):
        if at:
            reach.append(round(reach[-1] * rng.uniform(0.05, 0.7), 3))
        load = rng.uniform(0.1, MOST_LOAD)
        kinds = [_kind(rng, 1.0)]
        if rng.random() < 0.3:  # another slice, on which the variant takes longer
            kinds.append(_kind(rng, rng.uniform(1.2, 4.0)))
        workers = [rng.choice(kinds) for _ in range(rng.randint(1, 4))]
        scale = load * sum(worker.capacity() for worker in workers) / (rate * reach[-1])
        stages.append(lane_of(tuple((kind, n) for kind in kinds if (n := workers.count(kind)))))
        stages[-1] = lane_of(tuple((_scaled(kind, scale), number) for kind, number in stages[-1].groups))
        loads.append(load)
    return Drawn(tuple(lane.workers for lane in stages), rate, tuple(reach), tuple(loads))


def _kind(rng: random.Random, slower: float) -> Service:
    """Return a variant on a slice: a fixed cost a batch, a cost a row, so that batching is worth anything from much to
    nothing."""
    most = rng.choice((1, 4, 8, 16, 32))
    a_row = math.exp(rng.uniform(math.log(0.03), 0.0))
    batches = tuple(size for size in (1, 2, 4, 8, 16, 32) if size <= most)
    times = tuple(slower * (1.0 + a_row * (size - 1)) for size in batches)
    return Service(batches, times, (1.0,) * len(batches), rng.choice((0.0, 0.05, 0.1, 0.2, 0.3)))


def _scaled(kind: Service, factor: float) -> Service:
    return Service(kind.batches, tuple(ms * factor for ms in kind.mean_ms), kind.energy_j_per_row, kind.cv)


def compared(drawn: Drawn, rows: int, seed: int) -> Compared:
    """Return one configuration, played for `rows` rows, or for more where these do not tell its p95 within `_KNOWN`."""
    model_ms = float(np.quantile(play_latencies_ms(drawn.stages, drawn.rate, drawn.reach), 0.95))
    seen = _routed(drawn, rows, seed)
    if seen.half_width_ms > _KNOWN * seen.p95_ms and rows < _MOST_ROWS:  # more, as many as it seems to take
        rows = min(_MOST_ROWS, math.ceil(rows * (seen.half_width_ms / (_KNOWN * seen.p95_ms)) ** 2))
        seen = _routed(drawn, rows, seed)
    return Compared(
        workers=tuple(len(workers) for workers in drawn.stages),
        loads=drawn.loads,
        reach=drawn.reach,
        rows=rows,
        model_ms=model_ms,
        rows_ms=seen.p95_ms,
        half_width_ms=seen.half_width_ms,
    )


def _routed(drawn: Drawn, rows: int, seed: int) -> _Routed:
    """Return p95 of rows before the router, and the half-width of its 95 % interval by batch means."""
    warm_up = max(1000, rows // 20)
    found = row_by_row.play(drawn.stages, drawn.rate, drawn.reach, rows=rows, warm_up=warm_up, seed=seed)
    middle = float(np.quantile(found.latency_ms, 0.95))
    late = [float((block > middle).mean()) for block in np.array_split(found.latency_ms, _BLOCKS)]
    doubt = 2.09 * float(np.std(late, ddof=1)) / math.sqrt(_BLOCKS)  # Student's t of 19 degrees, two-sided
    low, high = (float(np.quantile(found.latency_ms, min(max(0.95 + by, 0.0), 1.0))) for by in (-doubt, doubt))
    return _Routed(middle, max(middle - low, high - middle))


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100, help="configurations [100]")
    parser.add_argument("--rows", type=int, default=60_000, help="rows of each, at least [60000]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", default="", help="also write the figures to this file")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    begun_s = time.monotonic()
    found = [compared(draw(rng), options.rows, options.seed + number) for number in range(options.n)]
    apart = np.array([abs(item.apart) for item in found])
    exceptions = [item for item in found if abs(item.apart) > APART]
    figures: dict[str, Any] = {
        "configurations": len(found),
        "of three stages": sum(len(item.workers) == 3 for item in found),
        "rows routed": sum(item.rows for item in found),
        "seconds": round(time.monotonic() - begun_s),
        **{f"model apart, {name}": f"{np.quantile(apart, q):.2%}" for name, q in _QUANTILES},
        "model above in": sum(item.apart > 0.0 for item in found),
        f"exceptions (apart > {APART:.0%})": len(exceptions),
        "p95 by the router, half-width at most": f"{max(item.half_width_ms / item.rows_ms for item in found):.2%}",
    }
    show("p95 of cascades, model against router (modelled)", ["figure", "value"], [[k, v] for k, v in figures.items()])
    columns = ("workers", "loads", "reach", "model ms", "router ms", "+-", "apart")
    table = [
        [
            "/".join(map(str, item.workers)),
            " ".join(f"{load:.2f}" for load in item.loads),
            " ".join(f"{part:.3g}" for part in item.reach),
            item.model_ms,
            item.rows_ms,
            f"{item.half_width_ms / item.rows_ms:.1%}",
            f"{item.apart:+.1%}",
        ]
        for item in sorted(found, key=lambda item: -abs(item.apart))
        if abs(item.apart) > 0.5 * APART
    ]
    show("further apart than 5 %", columns, table)
    write_json(options.json, {"figures": figures, "found": [asdict(item) for item in found]})


if __name__ == "__main__":
    main()
