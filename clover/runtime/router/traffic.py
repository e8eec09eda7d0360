"""Counters of a router's traffic: rates, latencies, batch sizes, and the statistics object of the protocol.

Trailing figures are kept in ring buffers indexed by the time that the caller passes in, so that nothing here needs a
timer: a bin is reset when its index comes up again.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clover._native.histogram import Histogram

_SECOND_NS = 1_000_000_000


class Rate:
    """Events a second over the trailing `window_s` whole seconds (and the one in progress)."""

    __slots__ = ("_bins", "_count", "_second", "_stamps", "_start", "window_s")

    def __init__(self, window_s: int = 10) -> None:
        self.window_s = window_s
        self._bins = [0] * (window_s + 1)
        self._stamps = [-1] * (window_s + 1)
        self._start = -1
        self._second = -1  # the second in progress, with its count
        self._count = 0

    def add(self, now_ns: int, count: int = 1) -> None:
        """Count `count` events at `now_ns`."""
        second = now_ns // 1_000_000_000
        if second != self._second:
            self._enter(second, now_ns)
        self._count += count

    def _enter(self, second: int, now_ns: int) -> None:
        """Begin to count in another second: store the count of the one before, and load that of this one."""
        self._leave()
        index = second % (self.window_s + 1)
        if self._stamps[index] != second:
            self._stamps[index] = second
            self._bins[index] = 0
            if self._start < 0:
                self._start = now_ns
        self._second, self._count = second, self._bins[index]

    def _leave(self) -> None:
        """Store the count of the second in progress in its bin."""
        if self._second >= 0:
            self._bins[self._second % (self.window_s + 1)] = self._count

    def per_s(self, now_ns: int) -> float:
        """Return the trailing rate; the divisor is the time actually covered, at least one second."""
        if self._start < 0:
            return 0.0
        self._leave()
        second = now_ns // _SECOND_NS
        oldest = second - self.window_s
        total = sum(n for n, stamp in zip(self._bins, self._stamps, strict=True) if oldest <= stamp <= second)
        covered_ns = now_ns - max(self._start, oldest * _SECOND_NS)
        return total / max(covered_ns / _SECOND_NS, 1.0)


class TrailingHistogram:
    """A histogram of the trailing `parts` x `part_s` seconds."""

    __slots__ = ("_part", "_part_ns", "_parts", "_stamp", "_stamps")

    def __init__(self, parts: int = 5, part_s: float = 2.0) -> None:
        self._part_ns = int(part_s * _SECOND_NS)
        self._parts = [Histogram() for _ in range(parts)]
        self._stamps = [-1] * parts
        self._stamp = -1  # of the part that the last value went to
        self._part = self._parts[0]

    def record(self, now_ns: int, value: int) -> None:
        """Add one value at `now_ns`."""
        stamp = now_ns // self._part_ns
        if stamp != self._stamp:
            index = stamp % len(self._parts)
            self._stamp, self._part = stamp, self._parts[index]
            if self._stamps[index] != stamp:
                self._stamps[index] = stamp
                self._part.reset()
        self._part.record(value)

    def merged(self, now_ns: int) -> Histogram:
        """Return the trailing values as one histogram."""
        stamp = now_ns // self._part_ns
        merged = Histogram()
        for part, at in zip(self._parts, self._stamps, strict=True):
            if at > stamp - len(self._parts):
                merged.merge(part)
        return merged

    def quantile(self, now_ns: int, q: float) -> float | None:
        """Return the trailing `q` quantile; None if nothing was recorded."""
        merged = self.merged(now_ns)
        return float(merged.quantile(q)) if merged.count else None

    def least_quantile(self, now_ns: int, q: float) -> float:
        """Return what the `q` quantile of all values is at least, by the trailing ones: two standard deviations of
        their number above it lower, and one value more; 0 if there are too few to tell."""
        merged = self.merged(now_ns)
        count = merged.count
        if not count:
            return 0.0
        least = q - (2.0 * math.sqrt(q * (1.0 - q) * count) + 1.0) / count
        return float(merged.quantile(least)) if least > 0.0 else 0.0


class Total:
    """A count and its total nanoseconds, as the protocol's statistics object has them: in 64 bits, beyond which they
    begin at 0 again.  (Those of a thousand requests that wait at any time take seven months to come to that.)"""

    __slots__ = ("count", "ns")

    def __init__(self) -> None:
        self.count = 0
        self.ns = 0

    def add(self, ns: int, count: int = 1) -> None:
        """Add `count` events that took `ns` together."""
        self.count += count
        self.ns += ns

    def report(self) -> dict[str, int]:
        """Return the count and the nanoseconds as a JSON object."""
        return {"count": self.count, "ns": self.ns & 0xFFFF_FFFF_FFFF_FFFF}


class TenantCounts:
    """What one tenant sent to a family: requests by HTTP status, rows answered by lane, and requests that were refused
    because it was over its own rate (`limited`, which `requests` has as 429, too)."""

    __slots__ = ("limited", "requests", "rows")

    def __init__(self, lanes: int) -> None:
        self.requests: dict[int, int] = {}
        self.rows = [0] * lanes
        self.limited = 0

    def count(self, status: int) -> None:
        """Count a request that has ended with an HTTP status."""
        self.requests[status] = self.requests.get(status, 0) + 1


@dataclass(frozen=True)
class TenantTotals:
    """What a tenant sent to a family and what that cost.  Requests without a tenant are counted under the empty name.

    `requests` by HTTP status, `rows` answered by variant, `limited` requests refused because the tenant was over its
    own rate; active joules and grams, of which the latest second may be missing, and how these are known."""

    requests: Mapping[int, int]
    rows: Mapping[str, int]
    limited: int = 0
    active_j: float = 0.0
    active_g: float = 0.0
    method: str = ""
    grams_method: str = ""


class Traffic:
    """All counters of one family.  Rows and requests are counted separately."""

    def __init__(self, variants: Sequence[str]) -> None:
        self.variants = tuple(variants)
        self._fine = 0
        self._refused: dict[int, int] = {}
        self.overload: dict[str, int] = {}
        """Requests refused or given up because more came than could be served in time, by reason."""
        self.retries: dict[str, int] = {}
        """Requests that came back when a Retry-After had asked them to, by what became of them: taken or refused."""
        self.rows = [0] * len(self.variants)
        self.latency = Histogram()
        self.queue = Histogram()
        self.batch_sizes: dict[int, tuple[int, int]] = {}
        self.poisoned = 0
        self.lost_workers = 0
        self.retried_rows = 0
        self.relieved_rows = 0
        self.diverted_rows = 0
        """Rows that went to another variant than the plan's, because that one would have answered too late."""
        self.escalated = [0] * len(self.variants)
        """Rows that each variant answered and that were escalated to a more expensive one; `rows` counts the others."""
        self.cut_short: dict[str, int] = {}
        """Rows that should have been escalated and were not, by reason."""
        self.accuracy_rows = 0.0
        """Sum over `rows` of the expected accuracy (percent) of each."""
        self.left_out_rows = 0
        self.left_out_accuracy_rows = 0.0
        """The same for the rows of clients over their limit of escalations, which an accuracy budget does not count."""
        self.repeated_rows = 0
        self.repeated_surplus = 0.0
        """Rows of cascades whose input had come before, and the sum of what is expected of each (percent) above what is
        expected of any row there: the same row again says nothing new of what is served."""
        self.reliefs = 0
        self.arrivals = Rate()
        self.served = Rate()
        self._trailing = TrailingHistogram()
        self._success = Total()
        self._fail = Total()
        self._waited = Total()
        self._input = Total()
        self._infer = Total()
        self._output = Total()
        self._last_ns = 0
        self._by_tenant: dict[str, TenantCounts] = {}

    def for_tenant(self, tenant: str) -> TenantCounts:
        """Return the counts of a tenant, which begin with the first call."""
        counts = self._by_tenant.get(tenant)
        if counts is None:
            counts = self._by_tenant[tenant] = TenantCounts(len(self.variants))
        return counts

    def by_tenant(self) -> dict[str, TenantTotals]:
        """Return what each tenant sent, and under the empty name what came without one: `codes` and `rows` in all."""
        requests, rows, found = Counter(self.codes), list(self.rows), {}
        for name, counts in self._by_tenant.items():
            requests.subtract(counts.requests)
            rows = [left - own for left, own in zip(rows, counts.rows, strict=True)]
            found[name] = TenantTotals(dict(counts.requests), self._named(counts.rows), counts.limited)
        left = {status: count for status, count in requests.items() if count}
        return {"": TenantTotals(left, self._named(rows)), **found}

    def _named(self, rows: Sequence[int]) -> dict[str, int]:
        return dict(zip(self.variants, rows, strict=True))

    def record_refusal(self, status: int) -> None:
        """Count a request that never entered the queue, or left it without an answer, by its HTTP status."""
        self._refused[status] = self._refused.get(status, 0) + 1

    def record_overload(self, why: str) -> None:
        """Count a request that was refused or given up because of overload."""
        self.overload[why] = self.overload.get(why, 0) + 1

    def record_return(self, outcome: str) -> None:
        """Count a request that came back when it had been asked to."""
        self.retries[outcome] = self.retries.get(outcome, 0) + 1

    @property
    def codes(self) -> dict[int, int]:
        """Requests by status."""
        return ({200: self._fine} if self._fine else {}) | self._refused

    def batch(self, lane: int, rows: int, escalated: int, busy_ns: int, now_ns: int, audits: int = 0) -> None:
        """Count a batch of `rows` rows that a worker finished.  `escalated` of them go to another variant; `audits` of
        them get no answer: they were audits, or refused."""
        count, ns = self.batch_sizes.get(rows, (0, 0))
        self.batch_sizes[rows] = (count + 1, ns + busy_ns)
        self.rows[lane] += rows - escalated - audits
        self.escalated[lane] += escalated
        self.served.add(now_ns, rows - escalated - audits)

    def record_tenants(self, lane: int, tenants: list[str]) -> None:
        """Count which tenants' rows are among those that `lane` answered, one a row (empty: of none)."""
        for tenant in tenants:
            if tenant:
                self.for_tenant(tenant).rows[lane] += 1

    def record_cut_short(self, why: str) -> None:
        """Count a row that keeps its answer although it should have been escalated."""
        self.cut_short[why] = self.cut_short.get(why, 0) + 1

    def record_outcome(
        self,
        status: int,
        arrival_ns: int,
        submit_ns: int,
        done_ns: int,
        queue_ns: int,
        compute_ns: int,
        trailing: bool = True,
    ) -> None:
        """Count a request that left the queue with an HTTP `status`.  `trailing` False leaves its latency out of the
        trailing p95: it waited for a worker that was not there."""
        latency_ns = done_ns - arrival_ns
        if status != 200:
            self.record_refusal(status)
            self._fail.add(latency_ns)
            return
        self._fine += 1
        self.latency.record(latency_ns)
        self.queue.record(queue_ns)
        if trailing:
            self._trailing.record(done_ns, latency_ns)
        self._success.add(latency_ns)
        self._waited.add(queue_ns)
        self._input.add(submit_ns - arrival_ns)
        self._infer.add(compute_ns)
        self._last_ns = done_ns

    def record_answer(self, output_ns: int) -> None:
        """Count a finished request that was read and closed `output_ns` after its answer was there."""
        self._output.add(output_ns)

    def p95_ms(self, now_ns: int) -> float | None:
        """Return the trailing p95 latency (milliseconds) of answered requests; None if there were none."""
        value_ns = self._trailing.quantile(now_ns, 0.95)
        return None if value_ns is None else value_ns / 1e6

    def p95_least_ms(self, now_ns: int) -> float:
        """Return what the p95 latency (milliseconds) is at least, as far as the trailing answers can tell (97.7 %
        sure): one late answer of ten does not show that a twentieth of all is late."""
        return self._trailing.least_quantile(now_ns, 0.95) / 1e6

    def report(self, name: str, version: str, now_ns: int) -> dict[str, Any]:
        """Return the protocol's statistics object of one model.  Gathering inputs and scattering outputs in the worker
        is part of `compute_infer`; `compute_input` is decoding into slots, `compute_output` encoding from them."""
        nothing = {"count": 0, "ns": 0}
        last_ms = int(time.time() * 1e3 - (now_ns - self._last_ns) / 1e6) if self._last_ns else 0
        return {
            "name": name,
            "version": version,
            "last_inference": last_ms,
            "inference_count": sum(self.rows),
            "execution_count": sum(count for count, _ in self.batch_sizes.values()),
            "inference_stats": {
                "success": self._success.report(),
                "fail": self._fail.report(),
                "queue": self._waited.report(),
                "compute_input": self._input.report(),
                "compute_infer": self._infer.report(),
                "compute_output": self._output.report(),
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "batch_stats": [
                {
                    "batch_size": size,
                    "compute_input": nothing,
                    "compute_infer": {"count": count, "ns": ns},
                    "compute_output": nothing,
                }
                for size, (count, ns) in sorted(self.batch_sizes.items())
            ],
        }
