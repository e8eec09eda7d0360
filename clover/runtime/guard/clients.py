"""Clients in groups, so that no single client decides what the guard finds.

A client is an address (`Ticket.client`); rows of this process come from one client.  Each belongs to one of `GROUPS`
groups.  Every test of the guard is made `VIEWS` times: on all rows, and for each group on the rows of all *other*
groups.  A finding stands only if it stands in every view that counts.  So whatever one client sends, a test that never
saw its rows has to agree, and the error rate of that test is the one that `clover.runtime.guard.drift` proves: the
finding of one client alone is none.

The view without a group counts only while the other groups send at least `REST` of the rows.  Otherwise that group is
nearly everyone (all clients behind one proxy, say) and is taken for everyone: a test without it would see too little.
What that lets one client do is bounded by the same share: it raises an alarm alone only while all others together send
less than `REST` of the rows.

The view of all rows always counts.  Groups depend on who sent how many rows before, never on what a row says, so each
view is a test on rows that were chosen before they were seen.  A client that was forgotten and comes back may join
another group.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

GROUPS = 8
"""All clients together are heard in seven eighths of the rows at least, if they are as many as that and send alike."""
VIEWS = 1 + GROUPS
REST = 0.25
"""The least share of the rows that a view needs to count."""
REMEMBERED_CLIENTS = 4096
"""Clients whose group is remembered; the one that was silent longest is forgotten first."""
RECENT_ROWS = 4096
"""About as many rows the shares of the groups are counted over."""

_OTHERS = np.ones((GROUPS, VIEWS))
_OTHERS[np.arange(GROUPS), 1 + np.arange(GROUPS)] = 0.0
_OTHERS.setflags(write=False)


def in_views(group: int) -> NDArray[np.float64]:
    """Return, for each view, 1 if it sees the rows of `group`, else 0."""
    row: NDArray[np.float64] = _OTHERS[group]
    return row


def views_of(groups: list[int], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what each view sees [VIEWS, ...] of the `counts` [len(groups), ...] of these groups."""
    seen: NDArray[np.float64] = _OTHERS[groups].T @ counts
    return seen


class ClientGroups:
    """The groups of the clients of one family, and how many of the latest rows each group sent (`recent`).

    A new client joins the group that sent the fewest rows lately, and keeps its group while it is remembered."""

    __slots__ = ("_groups", "_last_client", "_last_group", "_rows", "recent")

    def __init__(self) -> None:
        self.recent = [0] * GROUPS
        self._rows = 0
        self._groups: OrderedDict[str, int] = OrderedDict()
        self._last_client: str | None = None
        self._last_group = 0

    def sent(self, client: str) -> int:
        """Count a row of `client`; return its group."""
        group = self.group_of(client)
        self.recent[group] += 1
        self._rows += 1
        if self._rows >= RECENT_ROWS:
            self.recent = [rows // 2 for rows in self.recent]
            self._rows = sum(self.recent)
        return group

    def group_of(self, client: str) -> int:
        """Return the group of `client`, which joins one if it is new."""
        if client != self._last_client:
            self._last_client, self._last_group = client, self._find(client)
        return self._last_group

    def counting(self) -> NDArray[np.bool_]:
        """Return which views count now; only that of all rows before the first row."""
        total = sum(self.recent)
        return np.array([True, *(total - rows >= REST * total > 0 for rows in self.recent)])

    @property
    def largest_share(self) -> float:
        """The share of the latest rows that came from the group with most; 0 before the first row."""
        total = sum(self.recent)
        return max(self.recent) / total if total else 0.0

    def _find(self, client: str) -> int:
        """Return the group of `client` from the memory."""
        group = self._groups.get(client)
        if group is not None:
            self._groups.move_to_end(client)
            return group
        if len(self._groups) >= REMEMBERED_CLIENTS:
            self._groups.popitem(last=False)
        group = self._groups[client] = self.recent.index(min(self.recent))
        return group
