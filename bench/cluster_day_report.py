"""What a run of `bench.cluster_day` showed: figures from what was asked and what the controller said."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bench.cluster_kills import Kill
from bench.cluster_load import Asked
from clover.cluster.cluster_records import ClusterFile
from clover.cluster.controller.records import ClusterStatus

HOURS = 24
"""Parts of the day of which each has its row of the table."""
_AWAKE = ("ready", "partitioned", "draining", "waking")


@dataclass(frozen=True)
class Seen:
    """A look at the controller: when (seconds of the load), what it said, and the machine's load average then."""

    at_s: float
    status: ClusterStatus
    load_average: float = 0.0


class Ran(Protocol):
    """A run that has ended (`bench.cluster_day.Day`)."""

    given: Any
    file: ClusterFile
    kills: list[Kill]
    seen: list[Seen]
    servers: dict[str, str]
    load: Any

    @property
    def parts(self) -> Mapping[str, Any]:
        """Return the parts of the run (`bench.cluster_day.Part`), by name."""


# --- figures ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hour:
    """One part of the day: of each region the mean intensity, the rows/s that plans sent to it and that it answered,
    and the mean number of its nodes that were awake; the accuracy that was expected of all its answers (points), and
    the corrected floor that plans were made for."""

    number: int
    intensity: dict[str, float]
    planned: dict[str, float]
    answered: dict[str, float]
    awake: dict[str, float]
    accuracy: float
    floor: float


def tally(asked: Iterable[Asked]) -> dict[str, Any]:
    """Return what became of requests.  `failed_first`: those whose first try failed, `begun` those with a try that
    failed after its answer had begun, `lost` those that never were answered."""
    own = list(asked)
    latencies = sorted(one.latency_ms for one in own if one.done_s is not None)
    why = Counter(failure.why for one in own for failure in one.failures)
    return {
        "requests": len(own),
        "answered": sum(one.done_s is not None for one in own),
        "failed_first": sum(bool(one.failures) for one in own),
        "begun": sum(any(failure.begun for failure in one.failures) for one in own),
        "lost": sum(one.done_s is None for one in own),
        "failed_tries": dict(why.most_common()),
        "p50_ms": quantile(latencies, 0.5),
        "p95_ms": quantile(latencies, 0.95),
        "p99_ms": quantile(latencies, 0.99),
    }


def accuracy(asked: Iterable[Asked]) -> dict[str, Any]:
    """Return the accuracy of all answers in points: as their receipts expect it, and how many were right, with the
    standard error of that; and how many answers each variant gave."""
    own = [one for one in asked if one.done_s is not None]
    if not own:
        return {"rows": 0, "expected": math.nan, "right": math.nan, "right_error": math.nan, "variants": {}}
    right = sum(one.correct for one in own) / len(own)
    return {
        "rows": len(own),
        "expected": statistics.fmean(one.accuracy for one in own),
        "right": 100.0 * right,
        "right_error": 100.0 * math.sqrt(right * (1.0 - right) / len(own)),
        "variants": dict(Counter(one.variant for one in own).most_common()),
    }


def hours(
    asked: Iterable[Asked], seen: Sequence[Seen], regions: Mapping[str, str], began_s: float, ended_s: float
) -> list[Hour]:
    """Return the day by `HOURS` equal parts; those without a look are left out.  `regions`: the region of each server,
    by its word.  Rows count where and when they were answered."""
    names = sorted(set(regions.values()) | {region.name for one in seen for region in one.status.regions})
    span_s = (ended_s - began_s) / HOURS
    counted: list[Counter[str]] = [Counter() for _ in range(HOURS)]
    points: list[list[float]] = [[] for _ in range(HOURS)]
    for one in asked:
        if one.done_s is not None and one.server in regions and began_s <= one.done_s < ended_s:
            at = int((one.done_s - began_s) / span_s)
            counted[at][regions[one.server]] += 1
            points[at].append(one.accuracy)
    found = []
    for at in range(HOURS):
        looks = [one.status for one in seen if at <= (one.at_s - began_s) / span_s < at + 1]
        by_name = [{region.name: region for region in status.regions} for status in looks]
        known = [own for own in by_name if all(name in own and own[name].intensity is not None for name in names)]
        if not known:
            continue
        awake = [Counter(node.region for node in status.nodes if node.phase in _AWAKE) for status in looks]
        found.append(
            Hour(
                at,
                {name: statistics.fmean(own[name].intensity or 0.0 for own in known) for name in names},
                {name: statistics.fmean(own[name].answered for own in known) for name in names},
                {name: counted[at][name] / span_s for name in names},
                {name: statistics.fmean(own[name] for own in awake) for name in names},
                statistics.fmean(points[at]) if points[at] else math.nan,
                statistics.fmean([own.corrected for status in looks for own in status.families] or [math.nan]),
            )
        )
    return found


def follows(found: Sequence[Hour]) -> dict[str, float]:
    """Return how rows followed the grids: correlation of intensities with rows/s by plan and as answered (over regions
    and hours), the mean intensity at which rows were answered and that of an equal split, and the part of the rows that
    were answered elsewhere than the plans in force wanted."""
    grids = [hour.intensity[name] for hour in found for name in hour.intensity]
    planned = [hour.planned[name] for hour in found for name in hour.intensity]
    answered = [hour.answered[name] for hour in found for name in hour.intensity]
    rows = sum(answered)
    elsewhere = []
    for hour in found:
        wanted, given = sum(hour.planned.values()), sum(hour.answered.values())
        if wanted > 0.0 and given > 0.0:
            apart = (abs(hour.planned[name] / wanted - hour.answered[name] / given) for name in hour.planned)
            elsewhere.append(0.5 * sum(apart))
    return {
        "by_plan": correlation(grids, planned),
        "as_answered": correlation(grids, answered),
        "g_per_kwh_of_rows": sum(x * y for x, y in zip(grids, answered, strict=True)) / rows if rows else math.nan,
        "g_per_kwh_equal": statistics.fmean(grids) if grids else math.nan,
        "elsewhere": statistics.fmean(elsewhere) if elsewhere else math.nan,
    }


def ways(
    asked: Iterable[Asked], regions: Mapping[str, str], latency_ms: Mapping[str, Mapping[str, float]]
) -> list[dict[str, Any]]:
    """Return by region of the client and region of the answer how many rows there were, and their p95 in ms, measured
    and with what the way is declared to add."""
    found: dict[tuple[str, str], list[float]] = {}
    for one in asked:
        if one.done_s is not None and one.server in regions:
            found.setdefault((one.origin, regions[one.server]), []).append(one.latency_ms)
    rows = []
    for (origin, region), own in sorted(found.items()):
        p95_ms, way_ms = quantile(sorted(own), 0.95), latency_ms.get(origin, {}).get(region, 0.0)
        rows.append({"from": origin, "to": region, "rows": len(own), "p95_ms": p95_ms, "with_way_ms": p95_ms + way_ms})
    return rows


def grams(seen: Sequence[Seen]) -> dict[str, float]:
    """Return what was emitted between the first and the last look: by the plans in force, of each node alone, and of
    all awake in equal shares (modelled), and by the nodes' own accounts, which leave the machines' watts out."""
    first, last = seen[0].status.totals, seen[-1].status.totals
    found = {
        name: getattr(last, name) - getattr(first, name) for name in ("planned_g", "alone_g", "awake_g", "reported_g")
    }
    for name in ("alone", "awake"):
        other = found[f"{name}_g"]
        found[f"saved_against_{name}"] = 1.0 - found["planned_g"] / other if other > 0.0 else math.nan
    return found


def moves(seen: Sequence[Seen]) -> dict[str, int]:
    """Return how often nodes were released, and how often released ones were ready again."""
    last: dict[str, str] = {}
    released = back = 0
    for one in seen:
        for node in one.status.nodes:
            before = last.get(node.name)
            if before is not None and before != node.phase:
                released += node.phase == "released"
                back += node.phase == "ready" and before in ("waking", "released")
            last[node.name] = node.phase
    return {"released": released, "back": back}


def killed(kills: Sequence[Kill], asked: Sequence[Asked], ended_s: float) -> list[dict[str, Any]]:
    """Return for each kill how long it took, and which tries failed from then until the next one: of how many requests,
    how many with an answer that had begun, how many never answered."""
    found = []
    for kill, end_s in zip(kills, [*(one.at_s for one in kills[1:]), ended_s], strict=True):
        own = [(one, failure) for one in asked for failure in one.failures if kill.at_s <= failure.at_s < end_s]
        during = [one for one in asked if kill.at_s <= one.due_s < end_s]
        found.append(
            {
                "what": kill.what,
                "at_s": kill.at_s,
                "back_s": kill.back_s,
                "epochs": list(kill.epochs),
                "rows": list(kill.rows),
                "requests": len(during),
                "failed_first": len({id(one) for one, _ in own}),
                "begun": len({id(one) for one, failure in own if failure.begun}),
                "lost": len({id(one) for one, _ in own if one.done_s is None}),
                "why": dict(Counter(failure.why for _, failure in own).most_common()),
                "p95_ms": quantile(sorted(one.latency_ms for one in during if one.done_s is not None), 0.95),
            }
        )
    return found


def correlation(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Return the correlation of two series; NaN if one is constant or too short."""
    if len(xs) < 3 or len(set(xs)) < 2 or len(set(ys)) < 2:
        return math.nan
    return statistics.correlation(xs, ys)


def quantile(ordered: Sequence[float], part: float) -> float:
    """Return a quantile of ascending values; NaN if there are none."""
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else math.nan


def document(day: Ran) -> dict[str, Any]:
    """Return all that a run showed, as JSON has it."""
    regions = {node.name: node.region for node in day.file.node}
    of = {word: regions[name] for word, name in day.servers.items()}
    family = day.file.family[0]
    found: dict[str, Any] = {
        "minutes": day.given.minutes,
        "rate": day.given.rate,
        "traces": [path.rpartition("/")[2] for path in day.given.traces],
        "floor": family.accuracy_floor,
        "slo_ms": family.slo_ms,
        "family": family.family,
        "on_cores": day.given.cores,
    }
    for name, part in day.parts.items():
        asked = [one for one in day.load.asked if part.began_s <= one.due_s < part.ended_s]
        seen = [one for one in day.seen if part.began_s <= one.at_s < part.ended_s]
        found[name] = {
            "seconds": part.ended_s - part.began_s,
            "busy": part.busy,
            "load_average": statistics.fmean(one.load_average for one in seen) if seen else math.nan,
            **tally(asked),
            "accuracy": accuracy(asked),
        }
        if name == "day":
            by_hour = hours(day.load.asked, seen, of, part.began_s, part.ended_s)
            latency_ms = {region.name: region.latency_ms for region in day.file.region}
            found[name] |= {
                "unknown_server": sum(one.done_s is not None and one.server not in of for one in asked),
                "follows": follows(by_hour),
                "hours": [vars(one) for one in by_hour],
                "ways": ways(asked, of, latency_ms),
                "grams": grams(seen) if len(seen) > 1 else {},
                "moves": moves(seen),
            }
        else:
            found[name]["kills"] = killed(day.kills, day.load.asked, part.ended_s)
    return found
