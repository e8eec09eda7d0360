"""What unusual inputs look like to the operator, if tests without one group of clients find nothing."""

from __future__ import annotations

from typing import Any, cast

import pytest

from clover.runtime.guard.clients import ClientGroups
from clover.runtime.guard.drift import Detector
from clover.runtime.guard.escalation_limit import EscalationLimit
from clover.runtime.guard.pattern import CLIENT, pattern_of


class Blaming:
    """A detector that finds what it finds because of one group of clients."""

    def __init__(self, group: int) -> None:
        self.blamed = group


@pytest.mark.parametrize(("proxy", "unusual"), [(False, 3), (True, 1)])
def test_a_clients_part_of_the_rows_is_its_own_behind_a_proxy_too(proxy: bool, unusual: int) -> None:
    clients = ClientGroups()
    for number in range(1000):
        connection = 1 + number % 4
        clients.sent("10.0.0.9" if proxy else f"10.0.0.{connection}", connection)
    group = clients.group_of("10.0.0.9" if proxy else f"10.0.0.{unusual}", unusual)
    blaming: Any = Blaming(group)
    found = pattern_of(clients, EscalationLimit(clients, 2.0), "", [cast(Detector, blaming)])
    assert found.kind == CLIENT
    assert found.share == pytest.approx(0.25, abs=0.01)
    assert found.text.startswith("one client (25% of the rows)")
    assert [one.name for one in found.senders] == ["10.0.0.9, connection 1" if proxy else "10.0.0.3"]
