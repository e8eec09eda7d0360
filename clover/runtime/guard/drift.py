"""Sequential tests, without an end, of whether answers are still what was profiled.

**E-detectors.**  Under "nothing has changed", an e-value is a number that is 1 at most on average, whatever came before
it; a likelihood ratio of a bet against that hypothesis is one.  The Shiryaev-Roberts statistic M of a bet starts anew
with every row and multiplies on, `M <- (M + rows) * e`, so that it finds a change whenever it begins.  M less the rows
seen so far never grows on average, and so does the mean of several: an alarm at `M >= limit` comes on average after
`limit` rows at the earliest, and within n rows with a probability of n / limit at most.  That bound is a theorem, for
any n, also for rows that come in blocks, and the statistic may be read between blocks at no cost.

**Rows are inputs** that differ: the caller leaves out inputs that came before (`clover.runtime.guard.guard`).  The
theorem holds for rows drawn one by one, and one row a hundred times is one row.

**Nothing has changed** is not one distribution: a profile has seen some thousands of rows, and no more than they tell
may count as known.  Every bet is against a part of the rows (those whose score lies in the lowest tenth, say) being
*at most* what was profiled and several standard errors more, and for scores `SLACK` besides, because traffic is never
quite the rows of a profile.  A likelihood ratio against the end of such a range is an e-value for all of it.  Bets are
made on odds `ODDS` times as high; the mean over all of them is what is watched.

**Clients.**  With `clients`, a test is made in several views, each without the rows of one group of clients
(`clover.runtime.guard.clients`), and raises an alarm only if it would in every view that counts.  The view of all rows
always counts, so the bound holds as it stands; and for whatever one client sends, by the view without it.

Nothing here reads a clock or draws a number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clover.runtime.guard.clients import GROUPS, VIEWS, ClientGroups, in_views, views_of

Floats = NDArray[np.float64]

SCORE_LIMIT = 1e8
"""Rows after which a watch of scores raises a false alarm, on average, at the earliest."""
AGREEMENT_LIMIT = 2.5e5
"""The same for a watch of agreement, in audits: at most two of a hundred rows are audited, mostly one of two hundred,
and some thousands at once after an alarm.  With two watches of scores and two of agreement on every row and every
audit, a false alarm comes once in 5.5 million rows at most."""
SLACK = 0.03
BLOCK = 50
"""Scores that are counted before the statistic moves."""
FEWEST_ROWS, FEWEST_AUDITS = 200, 101
"""Rows that a test has to see before it raises an alarm.  The bound needs none, but a handful of rows may well not be
what clients usually send: a load test, a new client's experiments.  A hundred inputs, whatever they are,
raise no alarm."""
SIGMAS, AGREEMENT_SIGMAS = 5.0, 3.0
ODDS = (1.3, 1.8, 3.0)
CUTS = (1, 2, 3, 5, 7, 9)
"""Tenths below which the part of the rows is watched, and above which."""
_Z = 1.959964
"""The normal quantile of a two-sided 95 % interval."""
_MOST = 600.0  # of a logarithm: exp of it is a number still
NOTHING = math.exp(-_MOST)  # so that the logarithm is one before a view has seen a row
SURE = 0.99
KINDS = 64
_NO_GROUP = -2  # no row has come yet


class Detector:
    """The mean of the Shiryaev-Roberts statistics of `bets` bets, in each view of `clients`; `alarmed` once it has
    reached `limit`, after `fewest` rows at the earliest, in every view that counts.  `alone`: the group of clients
    without whose rows there would have been no alarm, -1 if there is none."""

    __slots__ = ("_clients", "_fewest", "_log_limit", "_logs", "_only", "_rows", "alarmed", "alone", "limit")

    def __init__(self, bets: int, limit: float, fewest: int = 0, clients: ClientGroups | None = None) -> None:
        if bets < 1 or not limit > 1.0:
            raise ValueError(f"a detector has a bet and a limit above 1, not {bets} and {limit}")
        self.limit = limit
        self._clients = clients
        self._fewest = fewest
        self._log_limit = math.log(limit)
        self._logs: Floats = np.full((1, bets), -np.inf)
        self._rows: Floats = np.zeros(1)
        self._only = _NO_GROUP
        self.alarmed = False
        self.alone = -1

    def add(self, rows: int | Floats, logs: Sequence[float] | Floats, group: int = 0) -> bool:
        """Take a block of `rows` rows of a group of clients with the logarithm of the e-value of each bet [bets], or
        with group -1 both by view [views] and [views, bets]; return whether it raised the alarm just now."""
        if self._clients is not None and group != self._only:
            if self._only == _NO_GROUP:
                self._only = group
            if group < 0 or group != self._only:
                self._split()
        if len(self._logs) > 1 and group >= 0:
            rows, logs = by_view(rows, logs, group)
        self._rows += rows
        grow(self._logs, rows, logs, _MOST)
        # The mean is no more than the largest, which is cheap to find.
        if self.alarmed or self._rows[0] < self._fewest or self._logs[0].max() < self._log_limit:
            return False
        self._split()
        reached = (np.exp(self._logs).mean(axis=1) >= self.limit) & (self._rows >= self._fewest)
        if not reached[self._counting()].all():
            return False
        self.alarmed = True
        self.alone = int(np.flatnonzero(~reached)[0]) - 1 if not reached.all() else -1
        return True

    @property
    def rows(self) -> int:
        """All rows since the start."""
        return int(self._rows[0])

    @property
    def statistic(self) -> float:
        """The value of the statistic, about the number of rows while there is no evidence of a change: the least of
        all views that count."""
        if len(self._logs) > 1:
            return float(np.exp(self._logs[self._counting()]).mean(axis=1).min())
        if self._only >= 0 and self._counting()[1 + self._only]:
            return 0.0  # the view without the only group has seen nothing
        return float(np.exp(self._logs).mean())

    @property
    def blamed(self) -> int:
        """The group of clients without whose rows there is least evidence, if there would be an alarm by all rows and
        is none without that group's; else -1."""
        if self.alarmed or len(self._logs) == 1 or self._logs[0].max() < self._log_limit:
            return -1
        found = np.where(self._counting(), np.exp(self._logs).mean(axis=1), np.inf)
        least = int(found.argmin())
        return least - 1 if found[least] < self.limit <= found[0] else -1

    def reset(self) -> None:
        """Forget all rows and the alarm."""
        self.alarmed = False
        self.alone = -1
        self._only = _NO_GROUP
        self._logs = np.full((1, self._logs.shape[1]), -np.inf)
        self._rows = np.zeros(1)

    def _split(self) -> None:
        """Keep each view separately from now on.  Until then all rows came from one group, and every other view was
        that of all rows."""
        if self._clients is None or len(self._logs) > 1:
            return
        self._logs, self._rows = np.repeat(self._logs, VIEWS, axis=0), np.repeat(self._rows, VIEWS)
        if self._only >= 0:
            self._logs[1 + self._only], self._rows[1 + self._only] = -np.inf, 0.0

    def _counting(self) -> NDArray[np.bool_]:
        """Return which views count."""
        return np.ones(1, np.bool_) if self._clients is None else self._clients.counting()


def by_view(rows: int | Floats, logs: Sequence[float] | Floats, group: int) -> tuple[Floats, Floats]:
    """Return by view the rows of a block of one group and the logarithms of its e-values."""
    seen = in_views(group)
    return rows * seen, np.multiply.outer(seen, logs)


def grow(statistics: Floats, rows: int | Floats, logs: Sequence[float] | Floats, most: float | Floats) -> None:
    """Update the logarithms of Shiryaev-Roberts `statistics` [views, bets] in place by a block of rows: an int, or
    [views]; e-values as logarithms `logs`; none becomes more than `most`."""
    np.exp(statistics, out=statistics)
    statistics += rows if isinstance(rows, int) else rows[:, None]
    np.maximum(statistics, NOTHING, out=statistics)
    np.log(statistics, out=statistics)
    statistics += logs
    np.minimum(statistics, most, out=statistics)


def block_of(counts: list[list[int]], logs: Floats) -> tuple[int | Floats, Floats, int]:
    """Return the rows of a block, the logarithms of its e-values, and its group, of `counts` by group of clients and
    bin; the first two by view, and -1, if it has several groups.  `logs` [bets, bins]: of a row in each bin."""
    groups = [group for group, bins in enumerate(counts) if any(bins)]
    if len(groups) == 1:
        own = counts[groups[0]]
        return sum(own), logs @ own, groups[0]
    rows = np.array([sum(counts[group]) for group in groups], np.float64)
    found = np.array([counts[group] for group in groups], np.float64) @ logs.T
    return views_of(groups, rows), views_of(groups, found), -1


def inside(cut: int, bins: int) -> list[bool]:
    """Return which bins a cut selects: the bins below it, or, if it is negative, that many bins from the top."""
    return [at < cut if cut > 0 else at >= bins + cut for at in range(bins)]


def most(part: float, rows: int, sigmas: float = SIGMAS) -> float:
    """Return an upper bound for a share that was `part` of `rows` profiled rows: `sigmas` standard errors above it."""
    if rows < 1 or not 0.0 <= part <= 1.0:
        raise ValueError(f"{part} of {rows} rows is not a share")
    # Wilson's bound, which holds for few rows and for a share of 0.
    middle = (part * rows + sigmas**2 / 2) / (rows + sigmas**2)
    spread = sigmas / (rows + sigmas**2) * math.sqrt(rows * part * (1.0 - part) + sigmas**2 / 4)
    return min(1.0, middle + spread)


def bet(part: float, odds: float) -> tuple[float, float]:
    """Return the logarithms of the e-value of a row that belongs to a part and of one that does not.  By the hypothesis
    the part is `part` at most; by the bet its odds are `odds` times as high."""
    raised = part / (1.0 - part) * odds
    wagered = raised / (1.0 + raised)
    return math.log(wagered / part), math.log((1.0 - wagered) / (1.0 - part))


def wilson(right: int, samples: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share, in percent.  Unlike the textbook interval it stays within
    0..100 and holds for few samples.  Raises ValueError without samples."""
    if samples < 1 or not 0 <= right <= samples:
        raise ValueError(f"{right} of {samples} is not a share")
    share = right / samples
    middle = share + _Z**2 / (2 * samples)
    spread = _Z * math.sqrt(share * (1 - share) / samples + _Z**2 / (4 * samples**2))
    scale = 100 / (1 + _Z**2 / samples)
    return max(0.0, (middle - spread) * scale), min(100.0, (middle + spread) * scale)


class ScoreWatch:
    """Tests whether scores still fall into the tenths of a profile as they did.

    `parts` [k] is the share of `rows` profiled rows in each bin, from the least to the most sure.  Scores that fall
    count, and scores that rise.  Raises ValueError if `parts` are no shares."""

    __slots__ = ("_counts", "_in_block", "_logs", "detector", "seen")

    def __init__(
        self,
        parts: Sequence[float],
        rows: int,
        limit: float = SCORE_LIMIT,
        fewest: int = FEWEST_ROWS,
        clients: ClientGroups | None = None,
    ) -> None:
        bins = len(parts)
        if bins < 2 or abs(sum(parts) - 1.0) > 1e-6 or min(parts) < 0.0:
            raise ValueError(f"{list(parts)} are not shares that sum to 1")
        logs: list[list[float]] = []
        for cut in (*CUTS, *(-cut for cut in CUTS)):
            within_cut = inside(cut, bins)
            part = sum(part for part, here in zip(parts, within_cut, strict=True) if here)
            known = most(min(1.0, part), rows) + SLACK
            if known < SURE:
                for odds in ODDS:
                    within, without = bet(known, odds)
                    logs.append([within if here else without for here in within_cut])
        if not logs:
            raise ValueError(f"{rows} rows tell too little to watch scores by")
        self._logs: Floats = np.array(logs)  # [bets, bins]
        self.detector = Detector(len(logs), limit, fewest, clients)
        self.seen = [0] * bins
        """Rows in each bin since the start."""
        self._counts = [[0] * bins for _ in range(1 if clients is None else GROUPS)]
        self._in_block = 0

    def add(self, at: int, group: int = 0) -> bool:
        """Take a row of `group` whose score lies in bin `at`; return whether it raised the alarm just now."""
        self._counts[group][at] += 1
        self._in_block += 1
        return self._in_block >= BLOCK and self._close()

    def _close(self) -> bool:
        counts = self._counts
        self._forget_block()
        for bins in counts:
            for at, count in enumerate(bins):
                self.seen[at] += count
        return self.detector.add(*block_of(counts, self._logs))

    def _forget_block(self) -> None:
        self._counts = [[0] * len(self.seen) for _ in self._counts]
        self._in_block = 0

    def reset(self) -> None:
        """Forget all rows and the alarm."""
        self.detector.reset()
        self.seen = [0] * len(self.seen)
        self._forget_block()


class AgreementWatch:
    """Tests whether answers agree with those of a better variant as often as they did.  The expected agreement may
    differ from row to row."""

    __slots__ = ("_bets", "agreed", "detector", "expected", "rows")

    def __init__(
        self, limit: float = AGREEMENT_LIMIT, fewest: int = FEWEST_AUDITS, clients: ClientGroups | None = None
    ) -> None:
        self.detector = Detector(len(ODDS), limit, fewest, clients)
        self.rows = 0
        self.agreed = 0
        self.expected = 0.0
        """Sum over the rows of the agreement that was profiled."""
        self._bets: dict[tuple[float, int], list[tuple[float, float]]] = {}

    def add(self, agrees: int, expected: float, profiled: int, rows: int = 1, group: int = 0) -> bool:
        """Take `rows` rows of a group of clients, `agrees` of which agree, of a kind of which a share `expected` of
        `profiled` rows agreed; return whether they raised the alarm just now.  With `profiled` 0 they are counted, and
        no bet is made."""
        self.rows += rows
        self.agreed += agrees
        self.expected += expected * rows
        kind = (expected, profiled)
        if kind not in self._bets:
            if len(self._bets) >= KINDS:
                self._bets.clear()
            known = most(1.0 - expected, profiled, AGREEMENT_SIGMAS) if profiled else 1.0
            self._bets[kind] = [bet(known, odds) for odds in ODDS] if known < SURE else []
        bets = self._bets[kind]
        if not bets:
            return False
        against = rows - agrees
        logs = np.array([against * apart + agrees * alike for apart, alike in bets])
        return self.detector.add(rows, logs, group)

    def reset(self) -> None:
        """Forget all rows and the alarm."""
        self.detector.reset()
        self.rows = self.agreed = 0
        self.expected = 0.0
