"""Which rows are audited: a share of them, spread evenly, and in every hour at least `LEAST`.

Row n is picked if the fractional part of n / golden ratio lies below the share: of any run of rows very nearly that
part is picked, at distances that fit no period in what clients send.  An audit that could not be made is owed: while an
hour is below `LEAST`, the next rows are picked whatever their number, and what an hour still owes at its end is added
to the next.  Owed audits never raise the share above `MOST` (`URGENT` does), and those of more than an hour ago are
dropped, so that a long time without an auditor is not followed by a flood of audits.
"""

from __future__ import annotations

LEAST, MOST = 0.001, 0.02
"""Within these lies the share of rows that is audited, in every hour without an alarm."""
URGENT = 0.2
"""The share right after an alarm, to learn soon whether answers have become worse."""
HOUR_NS = 3_600_000_000_000
_BITS = 64
_MASK = (1 << _BITS) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def clean_share(
    share: float,
    g_per_kwh: float,
    reference_g_per_kwh: float,
    *,
    suspicious: bool = False,
    urgent: bool = False,
) -> float:
    """Return the share to audit while the grid has `g_per_kwh`: `share` at the reference intensity, more on a cleaner
    grid and less on a dirtier one, between `LEAST` and `MOST`; `MOST` while answers look suspicious, `URGENT` right
    after an alarm."""
    if urgent:
        return URGENT
    if suspicious:
        return MOST
    return min(MOST, max(LEAST, share * reference_g_per_kwh / max(g_per_kwh, 1.0)))


class Sampler:
    """Picks rows.  `rows` came and `taken` were picked in the hour under way."""

    __slots__ = (
        "_hour",
        "_hour_ns",
        "_last_picked",
        "_least",
        "_most",
        "_owed",
        "_phase",
        "_tried",
        "hours",
        "last",
        "lowest",
        "rows",
        "share",
        "taken",
    )

    def __init__(self, share: float) -> None:
        self.rows = 0
        self.taken = 0
        self.lowest: float | None = None
        self.last: float | None = None
        """The lowest share of any hour that is over, and that of the last; None before one is."""
        self.hours = 0
        """Hours with rows that are over."""
        self._tried = 0
        self._hour = -1
        self._owed = 0.0
        self._phase = 0
        # Read with each row: an attribute has its C type.
        self._hour_ns, self._least, self._most = HOUR_NS, LEAST, MOST
        self.share = 0.0
        self.set(share)

    def set(self, share: float) -> None:
        """Pick this share of the rows from now on (of 1, at least `LEAST`)."""
        if share <= MOST < self.share:
            self._tried = min(self._tried, int(MOST * self.rows))  # urgent audits do not use up the room for owed ones
        self.share = min(max(share, LEAST), 1.0)
        self._last_picked = int(self.share * (1 << _BITS)) - 1

    @property
    def owed(self) -> float:
        """Audits that are missing to `LEAST`, including those owed by the hour before."""
        return max(0.0, LEAST * self.rows + self._owed - self.taken)

    def pick(self, now_ns: int) -> bool:
        """Return whether to audit the row that comes now."""
        hour = now_ns // self._hour_ns
        if hour != self._hour:
            self._begin_hour(hour)
        self.rows += 1
        self._phase = (self._phase + _GOLDEN) & _MASK
        due = self.taken < self._least * self.rows + self._owed and self._tried < self._most * self.rows
        if due or self._phase <= self._last_picked:
            self.taken += 1
            self._tried += 1
            return True
        return False

    def failed(self) -> None:
        """Take back a pick: the row could not be audited."""
        self.taken -= 1

    def spared(self) -> bool:
        """Return whether the hour has its least share without a row that was picked; its pick is taken back then."""
        if self.taken - 1 < LEAST * self.rows + self._owed:
            return False
        self.taken -= 1
        return True

    def _begin_hour(self, hour: int) -> None:
        """Record the share of the hour that is over, and carry over what it owes."""
        if self.rows:
            self.last = max(self.taken, 0) / self.rows
            self.lowest = self.last if self.lowest is None else min(self.lowest, self.last)
            self.hours += 1
        self._owed = min(self.owed, LEAST * self.rows)
        self.rows = self.taken = self._tried = 0
        self._hour = hour
