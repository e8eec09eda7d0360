"""The tokens of clients: what one may have escalated, and what all may."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from clover.runtime.guard.clients import MOST, NEW_ROWS, ClientGroups
from clover.runtime.guard.escalation_limit import EscalationLimit

PLANNED = 0.2


class Family:
    """Clients by number, and how often the rows of each want to be escalated."""

    def __init__(self, multiple: float = 2.0, seed: int = 1) -> None:
        self.clients = ClientGroups()
        self.limit = EscalationLimit(self.clients, multiple)
        self.draw = random.Random(seed)
        self.rows: dict[int, int] = {}
        self.refused: dict[int, int] = {}

    def row(self, client: int, wants: float) -> None:
        self.clients.record_row(f"10.0.0.{client}")
        sender = self.clients.latest
        self.limit.record_row(sender, PLANNED)
        self.rows[client] = self.rows.get(client, 0) + 1
        if self.draw.random() < wants and not self.limit.allows(sender, sender.group):
            self.refused[client] = self.refused.get(client, 0) + 1


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 16), st.integers(2, 30), st.floats(0.05, 0.7))
def test_the_honest_are_not_refused_whoever_else_attacks(seed: int, others: int, share: float) -> None:
    family = Family(seed=seed)
    for _ in range(4000):
        attacker = family.draw.random() < share
        family.row(0 if attacker else 1 + family.draw.randrange(others), 1.0 if attacker else PLANNED)
    refused = sum(count for client, count in family.refused.items() if client)
    assert refused <= 0.005 * 4000
    assert family.limit.refused == sum(family.refused.values())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 16), st.floats(0.3, 0.5))
def test_an_attacker_gets_no_more_than_its_tokens_and_the_slack_of_the_family(seed: int, share: float) -> None:
    family = Family(seed=seed)
    rows = 4000
    for _ in range(rows):
        attacker = family.draw.random() < share
        family.row(0 if attacker else 1 + family.draw.randrange(10), 1.0 if attacker else PLANNED)
    got = family.rows[0] - family.refused[0]
    assert got <= 2 * PLANNED * family.rows[0] + 0.1 * PLANNED * rows + MOST


def test_what_all_want_is_usual() -> None:
    family = Family()
    for at in range(5000):
        family.row(at % 10, 0.7)
    assert family.limit.usual > 0.6
    assert sum(family.refused.values()) <= 20


def test_who_sends_nearly_all_rows_is_not_limited() -> None:
    family = Family()
    for at in range(3000):
        family.row(at % 10 == 0, 1.0 if at % 10 else PLANNED)
    assert family.refused == {}


def test_an_unknown_plan_limits_nothing() -> None:
    clients = ClientGroups()
    limit = EscalationLimit(clients, 2.0)
    for at in range(1000):
        clients.record_row(str(at % 4))
        limit.record_row(clients.latest, 0.0)
        assert limit.allows(clients.latest, 0)


def test_a_connection_is_a_client_while_its_address_sends_nearly_all_rows() -> None:
    clients = ClientGroups()
    for _ in range(NEW_ROWS + 1):
        for flow in range(1, 9):
            clients.record_row("proxy", flow)
    assert len({clients.group_of("proxy", flow) for flow in range(1, 9)}) > 4
    assert clients.sender("proxy", 3).name == "proxy, connection 3"
    assert clients.sender("proxy", 3).payer is None
    assert clients.sender("proxy", 99).payer is clients.sender("proxy", 98).payer is clients.newcomers
    assert clients.leader == "proxy"
    for _ in range(200):
        clients.record_row("other", 50)
    assert clients.leader is None
    assert clients.sender("proxy", 3).name == "proxy"
    assert clients.sender("other", 50).name == "other"
