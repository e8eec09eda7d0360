"""Clients in groups, so that no single client decides what the guard finds.

A client is a tenant, or else an address (`Ticket.client`); rows of this process come from one client.  While one client
sends more than three quarters of the rows (a proxy, say), each of its connections is a client instead.  Each belongs to
one of `GROUPS` groups.  Every test of the guard is made `VIEWS` times: on all rows, and for each group on the rows of
all *other* groups.  A finding stands only if it stands in every view that counts.  So whatever one client sends, a test
that never saw its rows has to agree, and the error rate of that test is the one that `clover.runtime.guard.drift`
proves: the finding of one client alone is none.

The view without a group counts only while the other groups send at least `REST` of the rows.  Otherwise that group is
nearly everyone (all clients behind one proxy, say) and is taken for everyone: a test without it would see too little.
What that lets one client do is bounded by the same share: it raises an alarm alone only while all others together send
less than `REST` of the rows.

Clients whose rows are far more often unsure than others' (`clover.runtime.guard.escalation_limit`) are left out of all
views.  That too is known before a row is seen.

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
NEW_ROWS = 16
"""Rows until which a connection counts as new.  So who opens one after the other is one client."""
START = 6.0
"""Escalations that a client may have before it has sent anything."""
MOST = 64.0
"""Tokens that a client may keep."""
BACK = 16.0
"""Tokens with which a client that was over its limit is so no longer."""

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


class Sender:
    """What is known of a client, or of a connection of one.  Counts with `recent` in their words are halved as those of
    `ClientGroups` are."""

    __slots__ = (
        "_back",
        "_most",
        "era",
        "escalations",
        "group",
        "inputs",
        "name",
        "over",
        "payer",
        "recent_rows",
        "repeats",
        "rows",
        "tokens",
    )

    def __init__(self, name: str, group: int) -> None:
        self.name = name
        self.group = group
        self.payer: Sender | None = None
        """Of a new connection, what is known of all new ones together: they share tokens."""
        self.rows = 0
        self.inputs = 0
        """Rows, and those whose input was new."""
        self.recent_rows = 0
        self.repeats = 0
        """Recent rows whose input had come before."""
        self.escalations = 0
        """Recent rows that were to be escalated, as often as they were."""
        self.tokens = START
        """Escalations that it may have yet (`clover.runtime.guard.escalation_limit`)."""
        self.over = False
        """Whether it used them up, and has not got so many again since."""
        self.era = 0
        self._most, self._back = MOST, BACK  # read with each row: an attribute has its C type

    def pay(self, tokens: float) -> None:
        """Get tokens for a row."""
        self.tokens = min(self.tokens + tokens, self._most)
        if self.over and self.tokens >= self._back:
            self.over = False
        if self.payer is not None:
            self.payer.pay(tokens)

    def record_input(self, new: bool) -> None:
        """Count whether the input of a row was new."""
        if new:
            self.inputs += 1
        else:
            self.repeats += 1
        if self.payer is not None:
            self.payer.record_input(new)


class ClientGroups:
    """The groups of the clients of one family, and how many of the latest rows each group sent (`recent`), and were to
    be escalated (`escalations`).  `latest`: the sender of the latest row.  `newcomers`: all new connections as one.

    A new client joins the group that sent the fewest rows lately, and keeps its group while it is remembered."""

    __slots__ = (
        "_connections",
        "_era",
        "_groups",
        "_last_client",
        "_last_connection",
        "_last_flow",
        "_last_sender",
        "_rows",
        "escalations",
        "latest",
        "newcomers",
        "recent",
    )

    def __init__(self) -> None:
        self.recent = [0] * GROUPS
        self.escalations = [0] * GROUPS
        self._rows = 0
        self._era = 0
        self._groups: OrderedDict[str, Sender] = OrderedDict()
        self._connections: OrderedDict[int, Sender] = OrderedDict()
        self.newcomers = Sender("new connections", -1)
        self._last_client: str | None = None
        self._last_flow = 0
        self._last_sender = self._last_connection = self.latest = Sender("", 0)

    def record_row(self, client: str, flow: int = 0) -> int:
        """Count a row of `client` that came over the connection `flow` (0: of this process); return its group."""
        address = self._of(client)
        if address.era != self._era:
            self._age(address)
        address.rows += 1
        address.recent_rows += 1
        sender = address
        if flow and self._is_most(address):
            sender = self._connection(client, flow)
            if sender.era != self._era:
                self._age(sender)
            sender.rows += 1
            sender.recent_rows += 1
            if sender.payer is not None:
                self._count_new(sender)
        self.latest = sender
        group = sender.group
        self.recent[group] += 1
        self._rows += 1
        if self._rows >= RECENT_ROWS:
            self.recent = [rows // 2 for rows in self.recent]
            self.escalations = [rows // 2 for rows in self.escalations]
            self._rows = sum(self.recent)
            self._era += 1
        return group

    def sender(self, client: str, flow: int = 0) -> Sender:
        """Return as whom a client's row over the connection `flow` counts now."""
        address = self._of(client)
        self._age(address)
        if not flow or not self._is_most(address):
            return address
        return self._connection(client, flow)

    def group_of(self, client: str, flow: int = 0) -> int:
        """Return the group of `client`, which joins one if it is new."""
        return self.sender(client, flow).group

    def counting(self) -> NDArray[np.bool_]:
        """Return which views count now; only that of all rows before the first row."""
        total = sum(self.recent)
        return np.array([True, *(total - rows >= REST * total > 0 for rows in self.recent)])

    @property
    def largest_share(self) -> float:
        """The share of the latest rows that came from the group with most; 0 before the first row."""
        total = sum(self.recent)
        return max(self.recent) / total if total else 0.0

    def share(self, sender: Sender) -> float:
        """Return the share of the latest rows that came from a sender."""
        self._age(sender)
        return sender.recent_rows / self._rows if self._rows else 0.0

    def is_nearly_all(self, sender: Sender) -> bool:
        """Return whether all others send less than `REST` of the rows."""
        return self._rows - sender.recent_rows < REST * self._rows

    def senders(self) -> list[Sender]:
        """Return all that are remembered, with their recent counts."""
        found = [*self._groups.values(), *self._connections.values(), self.newcomers]
        for sender in found:
            self._age(sender)
        return found

    @property
    def leader(self) -> str | None:
        """The address that sends more than three quarters of the rows; None if there is none."""
        for name, one in self._groups.items():
            self._age(one)
            if self._is_most(one):
                return name
        return None

    def _is_most(self, address: Sender) -> bool:
        return 4 * (self._rows - address.recent_rows) < self._rows or self._rows == 0

    def _age(self, sender: Sender) -> None:
        """Divide recent counts by two as often as those of the groups were since a sender's last row."""
        eras = min(self._era - sender.era, 60)
        sender.era = self._era
        sender.recent_rows >>= eras
        sender.repeats >>= eras
        sender.escalations >>= eras

    def _of(self, client: str) -> Sender:
        if client != self._last_client:
            self._last_client, self._last_sender = client, self._find(client)
        return self._last_sender

    def _connection(self, client: str, flow: int) -> Sender:
        """Return a connection of an address."""
        if flow != self._last_flow:
            found = self._connections.get(flow)
            if found is None:
                if len(self._connections) >= REMEMBERED_CLIENTS:
                    self._connections.popitem(last=False)
                found = self._connections[flow] = Sender(f"{client}, connection {flow}", self._least())
                found.era, found.payer = self._era, self.newcomers
            else:
                self._connections.move_to_end(flow)
            self._last_flow, self._last_connection = flow, found
        return self._last_connection

    def _count_new(self, connection: Sender) -> None:
        """Count a row of a new connection as that of all new ones, until it has sent enough."""
        newcomers = self.newcomers
        self._age(newcomers)
        newcomers.rows += 1
        newcomers.recent_rows += 1
        if connection.rows >= NEW_ROWS:
            connection.payer = None

    def _least(self) -> int:
        """Return the group that sent the fewest rows lately."""
        return self.recent.index(min(self.recent))

    def _find(self, client: str) -> Sender:
        """Return a client from the memory."""
        found = self._groups.get(client)
        if found is not None:
            self._groups.move_to_end(client)
            return found
        if len(self._groups) >= REMEMBERED_CLIENTS:
            self._groups.popitem(last=False)
        found = self._groups[client] = Sender(client, self._least())
        found.era = self._era
        return found
