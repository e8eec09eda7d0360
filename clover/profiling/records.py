"""Makes the records of a profile from timings and answers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from clover.errors import ProfileError
from clover.families import AGREEMENT, by_agreement
from clover.profiling.chains import Answers, against
from clover.profiling.driver import Cell
from clover.profiling.score import Rights, agreement, interval
from clover.types import AccuracyMeasurement, FamilySpec, LatencyMeasurement, Method, VariantSpec


def latency_of(
    cell: Cell, variant: str, profile: str, backend: str, threads: int, joules: tuple[float, Method]
) -> LatencyMeasurement:
    """Return the measurement of one batch size; `joules` are those of a row, and how they are known."""
    ms = np.array(cell.ms)
    p50, p95, p99 = np.quantile(ms, (0.5, 0.95, 0.99))
    return LatencyMeasurement(
        variant=variant,
        profile=profile,
        backend=backend,
        batch=cell.batch,
        threads=threads,
        samples=len(ms),
        mean_ms=float(ms.mean()),
        cv=float(ms.std() / ms.mean()),
        p50_ms=float(p50),
        p95_ms=float(p95),
        p99_ms=float(p99),
        cpu_s_per_row=cell.cpu_s / cell.rows,
        energy_j_per_row=joules[0],
        energy_method=joules[1],
    )


def pool_cells(rounds: Sequence[Cell]) -> Cell:
    """Return one cell for several rounds of it.  Mean milliseconds and CPU seconds a row are the medians over the
    rounds.  Batches are spread around that mean as those of each round were around the mean of their round."""
    means_ms = [float(np.mean(cell.ms)) for cell in rounds]
    middle_ms = statistics.median(means_ms)
    pooled = Cell(rounds[0].batch, wall_s=sum(cell.wall_s for cell in rounds))
    for cell, mean_ms in zip(rounds, means_ms, strict=True):
        pooled.ms += [ms * middle_ms / mean_ms for ms in cell.ms]
    pooled.cpu_s = statistics.median(cell.cpu_s / cell.rows for cell in rounds) * pooled.rows
    return pooled


def middle_j(rounds: Sequence[tuple[float, Method]]) -> tuple[float, Method]:
    """Return the median of joules a row over the rounds in which they are known the way they mostly are."""
    method = statistics.mode(how for _, how in rounds)
    return statistics.median(joules for joules, how in rounds if how == method), method


def accuracy_of(
    spec: FamilySpec, variant: VariantSpec, backend: str, found: NDArray[Any], reference: Any, right: Rights, rows: int
) -> AccuracyMeasurement:
    """Return the accuracy of answers `found` to the first of `rows` rows, from how `right` each is, and how often they
    are those of `reference`.

    If `right` is empty it is the accuracy that was published: `require_published` must have been called.  For an
    untrained variant that is 0, by no method.
    """
    seen = min(len(found), len(reference))
    same = agreement(found[:seen], reference[:seen])
    method: Method
    if len(right):
        seen, total = len(found), float(right.sum())
        low, high = interval(total, seen)
        value, method, source = 100.0 * total / seen, "measured", "held_out"
        metric = spec.evaluation.metric if spec.evaluation else ""
    elif by_agreement(spec):
        # `proxy.judge_by_best` fills it in, as soon as the best variant has answered.
        low = high = value = 0.0
        method, source, metric = "proxy", "", AGREEMENT
    else:
        published = variant.accuracy
        assert published is not None
        low = high = value = published.value
        seen, method = 0, "none" if variant.untrained else "published"  # of random weights nobody published any
        source, metric = published.source, published.metric
    return AccuracyMeasurement(
        variant=variant.name,
        backend=backend,
        metric=metric,
        value=value,
        low=low,
        high=high,
        samples=seen,
        method=method,
        agreement=same,
        source=source,
        of=rows if seen else 0,
    )


def pair_with_best(
    accuracy: Sequence[AccuracyMeasurement],
    held_out: Mapping[tuple[str, str], Answers],
    backend: Mapping[str, str],
) -> tuple[AccuracyMeasurement, ...]:
    """Return `accuracy` with each one's difference from the best variant on the same rows, if rows had labels."""
    chosen = [item for item in accuracy if backend.get(item.variant) == item.backend]
    best = max(chosen, key=lambda item: item.value, default=None)
    if best is None or best.method not in ("measured", "proxy"):
        return tuple(accuracy)
    reference, pairs = held_out[best.variant, best.backend].right, []
    for item in accuracy:
        own = held_out[item.variant, item.backend].right
        seen = min(len(own), len(reference))
        pairs.append(structs.replace(item, against=against(own[:seen], reference[:seen])))
    return tuple(pairs)


def typical_p95(ms: NDArray[np.float64]) -> float:
    """Return the median of the p95 of five consecutive parts, so that one hiccup does not become the target."""
    return float(np.median([np.quantile(part, 0.95) for part in np.array_split(ms, min(5, len(ms)))]))


def require_published(spec: FamilySpec) -> None:
    """Raise ProfileError if some variant's accuracy was not published: without labelled rows it must be."""
    unknown = [variant.name for variant in spec.variants if variant.accuracy is None]
    if unknown:
        raise ProfileError(
            f"family {spec.name!r} has no evaluation set and no published accuracy for {', '.join(unknown)}: add "
            "[evaluation] with labelled rows, or accuracy = { value, metric, source } to each variant"
        )
