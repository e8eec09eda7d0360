"""Limits on the labels of each client, and the share of all labels that came from one client.

A client is an address.  One that labels its own requests wrongly cannot be distinguished from one whose labels are
right, so the labels that it may give a minute are bounded, and its share of all labels is reported.  Ids that are not
remembered are counted separately, so that guessing ids does not use up the limit of others behind the same proxy.
"""

from __future__ import annotations

from clover.errors import Overloaded

_MINUTE_NS = 60_000_000_000
_TRIES = 600
"""Ids that are not remembered, a client and minute."""
_MOST = 4096
"""Clients that are counted one by one; those that come later count as one."""
_OTHERS = "others"


class Labellers:
    """Counts by client: this minute's rows and tries, and all rows that were labelled."""

    __slots__ = ("_labelled", "_minute", "_rows", "_rows_a_minute", "_tries")

    def __init__(self, rows_a_minute: int) -> None:
        self._rows_a_minute = rows_a_minute
        self._minute = -1
        self._rows: dict[str, int] = {}
        self._tries: dict[str, int] = {}
        self._labelled: dict[str, int] = {}

    def count_unknown_id(self, client: str, now_ns: int) -> None:
        """Count an id that is not remembered; raises Overloaded if the client tried too many this minute."""
        self._begin_minute(now_ns)
        found = self._tries.get(_place(self._tries, client), 0)
        if found >= _TRIES:
            raise self._wait(now_ns, "too many unknown ids from this address; come again later")
        self._tries[_place(self._tries, client)] = found + 1

    def count_labels(self, client: str, rows: int, now_ns: int) -> None:
        """Count labelled rows; raises Overloaded, and counts nothing, if that would be too many this minute."""
        self._begin_minute(now_ns)
        place = _place(self._rows, client)
        found = self._rows.get(place, 0) + rows
        if found > self._rows_a_minute:
            raise self._wait(now_ns, "too many labels from this address; come again later with the same ones")
        self._rows[place] = found
        place = _place(self._labelled, client)
        self._labelled[place] = self._labelled.get(place, 0) + rows

    @property
    def clients(self) -> int:
        """Clients that gave labels."""
        return len(self._labelled)

    @property
    def largest_share(self) -> float | None:
        """The share of all labelled rows that came from the client with most; None before the first.  Clients that
        are not counted one by one are left out."""
        total = sum(self._labelled.values())
        most = max((rows for client, rows in self._labelled.items() if client != _OTHERS), default=0)
        return most / total if total else None

    def _begin_minute(self, now_ns: int) -> None:
        """Reset the counts if another minute has begun."""
        minute = now_ns // _MINUTE_NS
        if minute != self._minute:
            self._minute = minute
            self._rows.clear()
            self._tries.clear()

    @staticmethod
    def _wait(now_ns: int, text: str) -> Overloaded:
        return Overloaded(text, retry_after_s=(_MINUTE_NS - now_ns % _MINUTE_NS) / 1e9)


def _place(counts: dict[str, int], client: str) -> str:
    """Return the key of a client in a bounded dictionary: its own, or that of all others."""
    return client if client in counts or len(counts) < _MOST else _OTHERS
