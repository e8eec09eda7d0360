"""What every ingress works out alike: whole weights from shares of the rows, rates from counters that may restart."""

from __future__ import annotations

import math
from collections.abc import Mapping

from clover.errors import ClusterError

LARGEST_WEIGHT = 256
"""HAProxy's largest weight of a server; 0 is the smallest and gives a server nothing."""


def whole_weights(shares: Mapping[str, float], largest: int = LARGEST_WEIGHT) -> dict[str, int]:
    """Return whole weights 0 to `largest` in proportion to `shares` (any unit), by the method of largest remainders.

    The largest share gets `largest`, so that the others are as fine as they can be.  A share above 0 gets 1 at least:
    it is small, and not nothing.  A share of 0 gets 0.  ClusterError if a share is negative or not a number.
    """
    for name, share in shares.items():
        if not math.isfinite(share) or share < 0:
            raise ClusterError(f"the share of node {name} is {share}: it must be a number of 0 or more")
    most = max(shares.values(), default=0.0)
    if most == 0:
        return dict.fromkeys(shares, 0)
    # Divided by the largest first: shares may be so small that sums and products of them are not exact any more.
    quotas = {name: share / most * largest for name, share in shares.items()}
    weights = {name: int(quota) for name, quota in quotas.items()}
    left = round(math.fsum(quotas.values())) - sum(weights.values())
    by_remainder = sorted(quotas, key=lambda name: (weights[name] - quotas[name], -quotas[name], name))
    for name in by_remainder[:left]:
        weights[name] += 1
    return {name: max(weight, 1) if shares[name] > 0 else 0 for name, weight in weights.items()}


class CounterRates:
    """Rates of counters that only grow, but begin at 0 again if the process that keeps them is restarted.

    What a counter had before it was first seen is not counted, and what it had lost at a restart is not known: of a
    counter that fell, only what it shows since counts.
    """

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._at_s: float | None = None

    def observe(self, counters: Mapping[str, float], at_s: float) -> dict[str, float]:
        """Return each counter's growth a second since the last look; 0 for one not seen before, or at the same time.

        `at_s`: monotonic seconds; ValueError if they go back."""
        before = at_s if self._at_s is None else self._at_s
        if at_s < before:
            raise ValueError("the time of a look lies before that of the last one")
        seconds = at_s - before
        if seconds == 0 and self._at_s is not None:
            return dict.fromkeys(counters, 0.0)
        rates = {}
        for name, value in counters.items():
            last = self._last.get(name)
            grown = 0.0 if last is None else value - last if value >= last else value
            rates[name] = grown / seconds if seconds else 0.0
        self._last, self._at_s = dict(counters), at_s
        return rates
