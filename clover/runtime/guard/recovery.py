"""Sequential tests that answers are as profiled again: the tests of `clover.runtime.guard.drift`, reversed.

**The hypothesis** is that answers still drift ("ill"): that a part of the rows (those whose score lies in the lowest
tenth, say, or those that disagree) is *at least* so large that its odds are `ILL_SCORES` or `ILL_AGREEMENT` times those
of the largest part that counts as profiled.  A bet is made on that largest part.  Its likelihood ratio is an e-value
for all of the hypothesis, and grows on average at any part that counts as profiled.

**The bound** is that of an e-detector: while answers drift, the statistic less the rows seen never grows on average, so
that a false all-clear within n rows has a probability of n / limit at most.  Every part of the scores that is watched
has a statistic of its own, and all have to reach the limit: if any part drifts, its own would have to err.

A statistic is capped at `HELD` times its limit.  That only lowers it, so the bound holds, and a long time without drift
does not delay the detection of a later one.  What lies between "as profiled" and "ill" may be judged either way.

**Clients.**  With `clients`, a test is made in the views of `clover.runtime.guard.clients` too, and answers are well if
they are in any view that counts: one client whose answers stay ill does not hold the others up.  Views that leave a
group out have a limit `GROUPS` times as high, so that all of them together err no more often than that of all rows.

Nothing here reads a clock or draws a number.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clover.runtime.guard.clients import GROUPS, ClientGroups
from clover.runtime.guard.drift import (
    AGREEMENT_LIMIT,
    AGREEMENT_SIGMAS,
    BLOCK,
    CUTS,
    KINDS,
    SCORE_LIMIT,
    SLACK,
    SURE,
    Floats,
    bet,
    block_of,
    by_view,
    grow,
    inside,
    most,
)

ILL_SCORES, ILL_AGREEMENT = 1.3, 1.8
HELD = 10.0


class AllClear:
    """Statistics of `ills` hypotheses, each of which says that something is still ill, in each view of `clients`."""

    __slots__ = ("_clients", "_held", "_logs", "_rows", "_tries", "limit")

    def __init__(self, ills: int, limit: float, clients: ClientGroups | None = None) -> None:
        self.limit = limit
        self._clients = clients
        # One view is enough, so all views but the first share the probability of an error that one of them may have.
        self._tries = np.ones(1) if clients is None else np.array([1.0, *[float(GROUPS)] * GROUPS])
        self._held = np.log(HELD * limit * self._tries)[:, None]
        self._logs: Floats = np.full((len(self._tries), ills), -np.inf)
        self._rows: Floats = np.zeros(len(self._logs))

    def add(self, rows: int | Floats, logs: Sequence[float] | Floats, group: int = 0) -> None:
        """Take a block of `rows` rows of a group of clients with the logarithm of each hypothesis' e-value [ills], or
        with group -1 both by view [views] and [views, ills]."""
        if self._clients is not None and group >= 0:
            rows, logs = by_view(rows, logs, group)
        self._rows += rows
        grow(self._logs, rows, logs, self._held)

    def restart(self) -> None:
        """Forget all rows."""
        self._rows = np.zeros(len(self._logs))
        self._logs = np.full(self._logs.shape, -np.inf)

    @property
    def rows(self) -> int:
        """All rows since the start."""
        return int(self._rows[0])

    @property
    def statistic(self) -> float:
        """The least e-value of all hypotheses, in the view that counts in which it is largest."""
        found = np.exp(self._logs.min(axis=1)) / self._tries
        return float(found.max() if self._clients is None else found[self._clients.counting()].max())

    @property
    def well(self) -> bool:
        """Whether none of the hypotheses stands."""
        return self.statistic >= self.limit


def _against(known: float, odds: float) -> tuple[float, float]:
    """Return the logarithms of the e-values of a row within a part and of a row outside it.  The hypothesis: the part's
    odds are at least `odds` times those of `known`.  The bet: the part is `known`."""
    ill = known * odds / (1.0 - known + known * odds)
    within, without = bet(ill, 1.0 / odds)
    return within, without


class ScoreRecovery:
    """A test that scores fall into the tenths of a profile again; see `drift.ScoreWatch`."""

    __slots__ = ("_counts", "_in_block", "_logs", "clear")

    def __init__(
        self, parts: Sequence[float], rows: int, limit: float = SCORE_LIMIT, clients: ClientGroups | None = None
    ) -> None:
        logs = []
        for cut in (*CUTS, *(-cut for cut in CUTS)):
            here = inside(cut, len(parts))
            part = sum(part for part, within in zip(parts, here, strict=True) if within)
            known = most(min(1.0, part), rows) + SLACK
            if known < SURE:
                within, without = _against(known, ILL_SCORES)
                logs.append([within if each else without for each in here])
        if not logs:
            raise ValueError(f"{rows} rows tell too little to watch scores by")
        self._logs: Floats = np.array(logs)
        self.clear = AllClear(len(logs), limit, clients)
        self._counts = [[0] * len(parts) for _ in range(1 if clients is None else GROUPS)]
        self._in_block = 0

    def add(self, at: int, group: int = 0) -> None:
        """Take a row of a group of clients whose score lies in bin `at`."""
        self._counts[group][at] += 1
        self._in_block += 1
        if self._in_block >= BLOCK:
            self.clear.add(*block_of(self._counts, self._logs))
            self._forget_block()

    def restart(self) -> None:
        """Forget all rows."""
        self.clear.restart()
        self._forget_block()

    def _forget_block(self) -> None:
        self._counts = [[0] * len(bins) for bins in self._counts]
        self._in_block = 0


class AgreementRecovery:
    """A test that answers are those of a better variant again as often as they were; see `drift.AgreementWatch`."""

    __slots__ = ("_bets", "clear")

    def __init__(self, limit: float = AGREEMENT_LIMIT, clients: ClientGroups | None = None) -> None:
        self.clear = AllClear(1, limit, clients)
        self._bets: dict[tuple[float, int], tuple[float, float] | None] = {}

    def add(self, agrees: int, expected: float, profiled: int, rows: int = 1, group: int = 0) -> None:
        """Take `rows` rows of a group of clients, of which so many agree, of a kind of which a part `expected` of
        `profiled` rows agreed."""
        kind = (expected, profiled)
        if kind not in self._bets:
            if len(self._bets) >= KINDS:
                self._bets.clear()
            known = most(1.0 - expected, profiled, AGREEMENT_SIGMAS) if profiled else 1.0
            self._bets[kind] = _against(known, ILL_AGREEMENT) if known < SURE else None
        bets = self._bets[kind]
        if bets is not None:
            apart, alike = bets
            self.clear.add(rows, [(rows - agrees) * apart + agrees * alike], group)
