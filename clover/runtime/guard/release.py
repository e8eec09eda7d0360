"""Is a new version of a model as good as the stable one?  Sequential tests that may be looked at after every row.

Five means are compared with a margin each, the least difference that matters:

`errors`      failed requests of the new version, less those of the stable one in the same second
`slower`      how often a request of the new version takes longer than `slower` times one of the stable version of the
              same size in the same second; 1/2 if it is just so many times as slow
`tail`        requests beyond `slower` times the stable version's p95 of the seconds before, less those of the stable
              one
`differs`     rows that both versions answered, and differently
`accuracy`    rows that both answered and whose label came: wrong by the new version, less wrong by the stable one

Each is tested both ways by betting (Waudby-Smith and Ramdas 2024).  A bet of the part b of a wealth of 1 that the mean
lies above the margin m multiplies the wealth by 1 + b (x - m) after an observation x.  If the mean is at most m,
whatever was seen before, no bet makes the wealth grow on average.  By Ville's inequality it then reaches 1/a with a
probability of at most a, however often it is looked at and whenever the test ends.  A mixture over a few b is as good.
The risk of rolling back a version that is within all margins is split evenly over the five tests.  The risk of
promoting one that is beyond a margin is `PROMOTE_RISK`, as all tests have to be passed.

Latencies and failures of neighbouring requests are correlated (one queue, one worker).  So all requests of `block_s`
seconds make one observation (of more seconds if too few requests come for both versions to have some).  Failures do so
against the new version, while each request that does not fail speaks for it.  Rows are independent: which rows both
versions answer is chosen without looking at them.

Pure: no clock and no I/O.  Times are seconds of any monotonic clock.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

TESTS = ("errors", "slower", "tail", "differs", "accuracy")
PROMOTE_RISK = 0.05
"""The probability of passing a test although the new version is beyond its margin."""
TAIL_MARGIN = 0.1
"""How many more of the requests may be beyond the tail's limit."""
_PARTS = (0.01, 0.03, 0.1, 0.3, 0.6, 0.95)
"""Parts of the largest bet that cannot lose everything."""
_ENOUGH = 1e100
"""The wealth from which on nothing is counted any more: far beyond what decides."""
_MOST = 512
"""Latencies of one size that a version keeps of a block."""
_TAIL_KEPT = 2048
"""The stable version's latest latencies, whose p95 is the tail's."""
_TAIL_LEAST = 40


@dataclass(frozen=True, kw_only=True)
class ReleaseLimits:
    """The least differences that matter, and how long a release is watched.

    `errors`, `differs` and `accuracy` are fractions of requests or rows; with `differs` 1 that test is left out.  A
    request is slow if it takes longer than `slower` times a request of the stable version plus `slower_ms`: a quarter
    is more than neighbours on a machine differ by, and 1 ms is what a timer may add to the fastest request.  Latencies
    of the first `warmup_s` seconds do not count: caches are cold.  Requests of `block_s` share a queue, so they are one
    observation.  No release is promoted before `min_s`, as labels come late, or undecided after `max_s`.  `risk` is the
    probability of rolling back a version that is within all margins.
    """

    errors: float = 0.005
    slower: float = 1.25
    slower_ms: float = 1.0
    differs: float = 0.1
    accuracy: float = 0.01
    risk: float = 0.01
    warmup_s: float = 10.0
    block_s: float = 1.0
    min_s: float = 600.0
    max_s: float = 86_400.0

    def margin(self, test: str) -> float:
        """Return the margin of a test."""
        return {
            "errors": self.errors,
            "slower": 0.5,
            "tail": TAIL_MARGIN,
            "differs": self.differs,
            "accuracy": self.accuracy,
        }[test]


@dataclass(frozen=True)
class ReleaseVerdict:
    """What to do with a release: `promote`, `roll back`, or nothing yet (empty), and why."""

    action: str = ""
    why: str = ""


def _bets(margin: float, low: float) -> list[float]:
    """Return the bets that a mean is above `margin`, for observations of `low` at least."""
    return [part / (margin - low) for part in _PARTS]


def log_wealth(observations: NDArray[np.float64], margin: float, low: float = -1.0) -> NDArray[np.float64]:
    """Return the logarithm of the wealth after each of `observations` [..., n], none below `low`, of the bets that
    their mean is above the margin.  That it is below it: the same of what is negated."""
    logs = [np.cumsum(np.log1p(bet * (observations - margin)), axis=-1) for bet in _bets(margin, low)]
    found: NDArray[np.float64] = np.logaddexp.reduce(np.stack(logs), axis=0) - math.log(len(_PARTS))
    return found


class BettingTest:
    """One mean against its margin, both ways, for observations from `low` to 1."""

    __slots__ = ("_above", "_below", "_down", "_margin", "_most_down", "_most_up", "_up", "count", "total")

    def __init__(self, margin: float, low: float = -1.0) -> None:
        self.count = 0
        self.total = 0.0
        self._margin = margin
        self._above = _bets(margin, low)
        self._below = _bets(-margin, -1.0)
        self._up = [1.0 / len(_PARTS)] * len(_PARTS)
        self._down = [1.0 / len(_PARTS)] * len(_PARTS)
        self._most_up = self._most_down = 1.0

    @property
    def mean(self) -> float | None:
        """The mean of what was observed; None before the first observation."""
        return self.total / self.count if self.count else None

    @property
    def worse(self) -> float:
        """The most evidence so far that the mean is above the margin: the natural logarithm of the wealth."""
        return math.log(self._most_up)

    @property
    def fine(self) -> float:
        """The most evidence so far that the mean is below the margin."""
        return math.log(self._most_down)

    def add(self, observation: float) -> None:
        """Take one observation as evidence either way."""
        self.accuse(observation)
        self.clear(observation)

    def accuse(self, observation: float) -> None:
        """Take one observation as evidence of a mean above the margin alone."""
        self.count += 1
        self.total += observation
        gain = observation - self._margin
        if self._most_up < _ENOUGH:
            self._up = [wealth * (1.0 + bet * gain) for wealth, bet in zip(self._up, self._above, strict=True)]
            self._most_up = max(self._most_up, sum(self._up))

    def clear(self, observation: float, times: int = 1) -> None:
        """Take an observation that was made so many times as evidence of a mean below the margin alone."""
        gain = self._margin - observation
        if self._most_down < _ENOUGH:
            pairs = zip(self._down, self._below, strict=True)
            self._down = [wealth * (1.0 + bet * gain) ** times for wealth, bet in pairs]
            self._most_down = max(self._most_down, sum(self._down))


@dataclass
class _Block:
    """The requests of one version within one block."""

    requests: int = 0
    failed: int = 0
    latency_ms: dict[int, deque[float]] = field(default_factory=dict)
    """The latest ones by size: the bit length of the number of rows."""

    def add(self, failed: bool, latency_ms: float, rows: int) -> None:
        self.requests += 1
        if failed:
            self.failed += 1
        elif latency_ms > 0.0:
            kept = self.latency_ms.get(rows.bit_length())
            if kept is None:
                kept = self.latency_ms[rows.bit_length()] = deque(maxlen=_MOST)
            kept.append(latency_ms)


class ReleaseTests:
    """All tests of one release that began at `now_s`."""

    def __init__(self, limits: ReleaseLimits, now_s: float) -> None:
        self.limits = limits
        self.began_s = now_s
        self.tests = {
            "errors": BettingTest(limits.margin("errors")),
            "slower": BettingTest(limits.margin("slower"), 0.0),
            "tail": BettingTest(limits.margin("tail")),
            "differs": BettingTest(min(limits.differs, 0.999), 0.0),
            "accuracy": BettingTest(limits.accuracy),
        }
        self._block_s = now_s
        self._new, self._stable = _Block(), _Block()
        self._tail: deque[float] = deque(maxlen=_TAIL_KEPT)

    # --- what is seen -------------------------------------------------------------------------------------------------

    def record_request(self, new: bool, failed: bool, latency_ms: float, rows: int, now_s: float) -> None:
        """Count a client's request that the new or the stable version has ended.  A latency of 0 means unknown."""
        if now_s >= self._block_s + self.limits.block_s:
            self.evaluate(now_s)
        (self._new if new else self._stable).add(failed, latency_ms, rows)

    def record_comparison(self, same: bool) -> None:
        """Count a row that both versions answered."""
        self.tests["differs"].add(0.0 if same else 1.0)

    def count_label(self, new_right: bool, stable_right: bool) -> None:
        """Count a row that both versions answered and whose label came."""
        self.tests["accuracy"].add(float(stable_right) - float(new_right))

    def evaluate(self, now_s: float) -> None:
        """End the block if it is over: once each version has answered something in it, however few requests come."""
        new, stable = self._new, self._stable
        if now_s < self._block_s + self.limits.block_s or not (new.requests and stable.requests):
            return
        warm = self._block_s >= self.began_s + self.limits.warmup_s
        self._new, self._stable, self._block_s = _Block(), _Block(), now_s
        self._failures(new, stable)
        if warm:
            self._latencies(new.latency_ms, stable.latency_ms)
        for latencies in stable.latency_ms.values():
            self._tail.extend(latencies)

    def _failures(self, new: _Block, stable: _Block) -> None:
        """Compare the failures of one block: as one observation against the new version, as failures come together
        when a worker dies, and each request for itself in its favour."""
        rate = stable.failed / stable.requests
        self.tests["errors"].accuse(new.failed / new.requests - rate)
        self.tests["errors"].clear(1.0 - rate, new.failed)
        self.tests["errors"].clear(-rate, new.requests - new.failed)

    def _latencies(self, new: dict[int, deque[float]], stable: dict[int, deque[float]]) -> None:
        """Compare the latencies of one block."""
        factor, more_ms = self.limits.slower, self.limits.slower_ms
        slower = count = 0.0
        for size, found in new.items():
            others = stable.get(size)
            if others:
                ordered = np.sort(np.array(others)) * factor + more_ms
                slower += float(np.searchsorted(ordered, np.array(found), side="left").sum()) / len(others)
                count += len(found)
        if count:
            self.tests["slower"].add(slower / count)
        if len(self._tail) >= _TAIL_LEAST:
            limit_ms = float(np.quantile(np.array(self._tail), 0.95)) * factor + more_ms
            parts = [_beyond(latencies, limit_ms) for latencies in (new, stable)]
            if None not in parts:
                self.tests["tail"].add((parts[0] or 0.0) - (parts[1] or 0.0))

    # --- what follows -------------------------------------------------------------------------------------------------

    @property
    def needed(self) -> tuple[str, ...]:
        """The tests that have to be passed: that of labels if some came, or some must."""
        labels = self.tests["accuracy"].count > 0
        left_out = {name for name, out in (("differs", self.limits.differs >= 1.0), ("accuracy", not labels)) if out}
        return tuple(name for name in TESTS if name not in left_out)

    def verdict(self, now_s: float) -> ReleaseVerdict:
        """Return what to do now."""
        enough = math.log(len(TESTS) / self.limits.risk)
        for name, test in self.tests.items():
            if test.worse >= enough and not (name == "differs" and self.limits.differs >= 1.0):
                return ReleaseVerdict("roll back", self._words(name))
        lasted_s = now_s - self.began_s
        missing = [name for name in self.needed if self.tests[name].fine < -math.log(PROMOTE_RISK)]
        if not missing and lasted_s >= self.limits.min_s:
            return ReleaseVerdict("promote", "; ".join(self._words(name) for name in self.needed))
        if lasted_s >= self.limits.max_s:
            return ReleaseVerdict(
                "roll back", f"undecided after {lasted_s:.0f} s: {'; '.join(self._words(name) for name in missing)}"
            )
        return ReleaseVerdict()

    def waits_for(self, now_s: float) -> str:
        """Return what keeps the release from being promoted, in words; empty if nothing does."""
        short = [name for name in self.needed if self.tests[name].fine < -math.log(PROMOTE_RISK)]
        left_s = self.began_s + self.limits.min_s - now_s
        parts = [f"more evidence of {', '.join(short)}"] if short else []
        if left_s > 0.0:
            parts.append(f"{left_s:.0f} s of its least time")
        return " and ".join(parts)

    def report(self) -> dict[str, Any]:
        """Return every test: observations, mean, margin, and the evidence each way as parts of what decides."""
        worse, fine = math.log(len(TESTS) / self.limits.risk), -math.log(PROMOTE_RISK)
        return {
            name: {
                "observations": test.count,
                "mean": test.mean,
                "margin": self.limits.margin(name),
                "worse": min(1.0, test.worse / worse),
                "fine": min(1.0, test.fine / fine),
                "needed": name in self.needed,
            }
            for name, test in self.tests.items()
        }

    def _words(self, name: str) -> str:
        """Return what a test has found, for people."""
        test, margin = self.tests[name], self.limits.margin(name)
        if test.mean is None:
            return f"{name}: nothing was observed"
        mean = 100.0 * test.mean
        if name == "slower":
            longer = f"longer than {self.limits.slower:g} x a stable one's latency + {self.limits.slower_ms:g} ms"
            return f"slower: {mean:.0f} % of its requests take {longer}, in {test.count} blocks (limit 50)"
        text = {
            "errors": f"{mean:+.2f} points of failed requests beside the stable version, in {test.count} blocks",
            "tail": f"{mean:+.1f} points of requests beyond the stable version's p95, in {test.count} blocks",
            "differs": f"{mean:.2f} % of {test.count} rows are answered differently",
            "accuracy": f"{-mean:+.2f} points of accuracy beside the stable version, by {test.count} labelled rows",
        }[name]
        return f"{name}: {text} (limit {100.0 * margin:g})"


def _beyond(latency_ms: dict[int, deque[float]], limit_ms: float) -> float | None:
    """Return the part of the latencies above a limit; None if there are none."""
    latencies: Sequence[float] = [one for many in latency_ms.values() for one in many]
    return sum(one > limit_ms for one in latencies) / len(latencies) if latencies else None
