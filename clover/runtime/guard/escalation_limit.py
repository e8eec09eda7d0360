"""A limit on escalations by client, so that nobody makes a cascade dear for all by what it sends.

A chain is planned for a share of escalations a row (`RoutedChain.escalations`).  A client whose inputs are made, or
chosen, so that cheap variants are unsure of them would have every row escalated.  So each client has *tokens*: it gets
`multiple` times the usual share with every row (or what lies half way from that share to 1, if that is less), pays one
for every escalation, and begins with `clients.START`.  At twice the usual share a client whose inputs are as profiled
runs out of these in one case of two thousand, ever.

The *usual* share is the planned one, or what groups of clients with a quarter of the rows stay below, if that is more:
inputs that have become harder for nearly everyone are drift, and nobody is limited for that.

A client that has used up its tokens is *over its limit*, until it has `clients.BACK` again.  Then

- its rows keep the answer of the variant they have reached, but for those that it gets a token for, while the family as
  a whole escalates more than `SLACK` times the usual share (as long as it does not, it costs nobody anything);
- the guard leaves its rows out of its tests, while such clients send less than half of the rows, and what an accuracy
  budget has spent is counted without them.

A new connection has tokens of its own, and all new ones together have as many: it needs one of each, so that nobody
gets more by opening one after the other.

Neither is done to a client that sends nearly all of the rows: then there is nobody to protect.  Rows that asked for an
accuracy neither pay nor count.
"""

from __future__ import annotations

from clover.runtime.guard.clients import GROUPS, RECENT_ROWS, REST, ClientGroups, Sender

FAMILY = 16.0
"""Tokens that the family as a whole may keep."""
SLACK = 1.1
ROWS = 64
"""Rows after which the usual share is found anew."""


class EscalationLimit:
    """Limits the escalations of the `clients` of one family to `multiple` times the usual share.  0: no limit.  With
    `acts` False rows are counted, and escalated all the same.  `refused`: rows that were over the limit."""

    __slots__ = (
        "_clients",
        "_family",
        "_most",
        "_over",
        "_recent",
        "_rows",
        "_slack",
        "acts",
        "multiple",
        "planned",
        "refused",
        "usual",
    )

    def __init__(self, clients: ClientGroups, multiple: float, *, acts: bool = True) -> None:
        self.multiple = multiple
        self.planned = 0.0
        """Escalations a row by the chain of the latest row; 0 while that is unknown, and nothing is limited then."""
        self.usual = 0.0
        """Escalations a row that groups of clients with a quarter of the rows stay below."""
        self.refused = 0
        self.acts = acts
        self._clients = clients
        self._family = FAMILY
        self._rows = 0
        self._recent = self._over = 0  # recent rows, and those of clients over their limit
        self._slack, self._most = SLACK, FAMILY  # read with each row: an attribute has its C type

    def record_row(self, sender: Sender, planned: float) -> None:
        """Count a row that was answered first, by a chain of which `planned` escalations a row are expected."""
        self.planned = planned
        self._rows += 1
        if self._rows >= ROWS:
            self._rows = 0
            self.usual = self._share_of_most()
        share = max(planned, self.usual)
        tokens = min(self.multiple * share, (1.0 + share) / 2)
        sender.pay(tokens)
        self._family = min(self._family + self._slack * share, self._most)
        self._recent += 1
        self._over += self.is_over(sender)
        if self._recent >= RECENT_ROWS:
            self._recent //= 2
            self._over //= 2

    def is_over(self, sender: Sender) -> bool:
        """Return whether a client is over its limit, and others send enough to be protected."""
        if self.planned <= 0.0:
            return False
        if sender.over and not self._clients.is_nearly_all(sender):
            return True
        payer = sender.payer
        return payer is not None and payer.over and not self._clients.is_nearly_all(payer)

    def leaves_out(self, sender: Sender) -> bool:
        """Return whether the guard leaves out the rows of a client."""
        return (sender.over or sender.payer is not None) and 2 * self._over < self._recent and self.is_over(sender)

    def allows(self, sender: Sender, group: int) -> bool:
        """Count an escalation that a row of a client of `group` needs; return whether it gets it."""
        self._clients.escalations[group] += 1
        payer = sender.payer
        lacking = self._lacks(sender)
        if payer is not None and self._lacks(payer):
            lacking = True
        if lacking and self._family < 1.0 and self.planned > 0.0:
            self.refused += 1
            return not self.acts
        sender.tokens = max(sender.tokens - 1.0, 0.0)
        if payer is not None:
            payer.tokens = max(payer.tokens - 1.0, 0.0)
        self._family = max(self._family - 1.0, -self._most)
        return True

    def _lacks(self, sender: Sender) -> bool:
        """Count an escalation; return whether the client has no token for it, and others send enough to be
        protected."""
        sender.escalations += 1
        if sender.tokens >= 1.0 or self.multiple <= 0.0:
            return False
        sender.over = True
        return not self._clients.is_nearly_all(sender)

    def _share_of_most(self) -> float:
        """Return the share of escalations that groups with `REST` of the rows stay below."""
        clients = self._clients
        groups = [group for group in range(GROUPS) if clients.recent[group]]
        shares = sorted((clients.escalations[group] / clients.recent[group], clients.recent[group]) for group in groups)
        rest = REST * sum(clients.recent)
        for share, rows in shares:
            rest -= rows
            if rest <= 0.0:
                return share
        return 0.0
