"""Which rows are audited: a share of them, spread evenly, and in no hour fewer than promised.

Row n is picked where the fractional part of n / golden ratio lies below the share: of any run of rows very nearly that
part is picked, at distances that are no multiple of anything a client may do by turns.  An audit that could not be made
is owed: while an hour lies below `LEAST`, the next rows are picked whatever their number says, and what an hour still
owes at its end is made up for in the next.  Debts never make it more than `MOST` of the rows (`URGENT` is another
matter), and those of more than an
hour are forgotten: where nobody could answer for long, nobody is flooded later.
"""

from __future__ import annotations

LEAST, MOST = 0.001, 0.02
"""Within these lies the share of rows that is audited, in every hour without an alarm."""
URGENT = 0.2
"""The share right after an alarm, when it is to be known soon whether answers have become worse."""
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
    """Return the share to audit while the grid has `g_per_kwh`: `share` at the reference, more where it is cleaner and
    less where it is dirtier, within the bounds; the most while something looks wrong, `URGENT` while that cannot
    wait."""
    if urgent:
        return URGENT
    if suspicious:
        return MOST
    return min(MOST, max(LEAST, share * reference_g_per_kwh / max(g_per_kwh, 1.0)))


class Sampler:
    """Picks rows.  `rows` came and `taken` were picked in the hour under way."""

    __slots__ = ("_bound", "_hour", "_owed", "_phase", "_tried", "hours", "last", "lowest", "rows", "share", "taken")

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
        self.share = 0.0
        self.set(share)

    def set(self, share: float) -> None:
        """Pick so many from now on (a part of 1, at least `LEAST`)."""
        if share <= MOST < self.share:
            self._tried = min(self._tried, int(MOST * self.rows))  # what was urgent is no debt's
        self.share = min(max(share, LEAST), 1.0)
        self._bound = int(self.share * (_MASK + 1))

    @property
    def owed(self) -> float:
        """Audits that are missing to `LEAST`, those of hours before included."""
        return max(0.0, LEAST * self.rows + self._owed - self.taken)

    def pick(self, now_ns: int) -> bool:
        """Return whether to audit the row that comes now."""
        if now_ns // HOUR_NS != self._hour:
            self._turn(now_ns // HOUR_NS)
        self.rows += 1
        self._phase = (self._phase + _GOLDEN) & _MASK
        due = self.taken < LEAST * self.rows + self._owed and self._tried < MOST * self.rows
        if due or self._phase < self._bound:
            self.taken += 1
            self._tried += 1
            return True
        return False

    def failed(self) -> None:
        """A row that was picked could not be audited."""
        self.taken -= 1

    def spared(self) -> bool:
        """Return whether a row that was picked need not be audited: without it the hour still has its least share."""
        if self.taken - 1 < LEAST * self.rows + self._owed:
            return False
        self.taken -= 1
        return True

    def _turn(self, hour: int) -> None:
        if self.rows:
            self.last = max(self.taken, 0) / self.rows
            self.lowest = self.last if self.lowest is None else min(self.lowest, self.last)
            self.hours += 1
        self._owed = min(self.owed, LEAST * self.rows)
        self.rows = self.taken = self._tried = 0
        self._hour = hour
