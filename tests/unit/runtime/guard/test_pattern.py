"""What unusual inputs look like to the operator, if tests without one group of clients find nothing."""

from __future__ import annotations

from typing import Any, cast

import pytest

from clover.runtime.guard.clients import ClientGroups, Sender
from clover.runtime.guard.drift import Detector
from clover.runtime.guard.escalation_limit import EscalationLimit
from clover.runtime.guard.pattern import CLIENT, NONE, PROBE, REPEATS, pattern_of


class Blaming:
    """A detector that finds what it finds because of one group of clients."""

    def __init__(self, group: int) -> None:
        self.blamed = group


@pytest.mark.parametrize(("proxy", "unusual"), [(False, 3), (True, 1)])
def test_a_clients_part_of_the_rows_is_its_own_behind_a_proxy_too(proxy: bool, unusual: int) -> None:
    clients = ClientGroups()
    for number in range(1000):
        connection = 1 + number % 4
        clients.record_row("10.0.0.9" if proxy else f"10.0.0.{connection}", connection)
    group = clients.group_of("10.0.0.9" if proxy else f"10.0.0.{unusual}", unusual)
    blaming: Any = Blaming(group)
    found = pattern_of(clients, EscalationLimit(clients, 2.0), "", [cast(Detector, blaming)])
    assert found.kind == CLIENT
    assert found.share == pytest.approx(0.25, abs=0.01)
    assert found.text.startswith("one client (25% of the rows)")
    assert [one.name for one in found.senders] == ["10.0.0.9, connection 1" if proxy else "10.0.0.3"]


@pytest.mark.parametrize(
    ("inputs", "kind", "words"),
    [
        (1, PROBE, "100% of the latest rows are the same input again and again: looks like a probe"),
        (20, PROBE, "98% of the latest rows are the same 20 inputs again and again: looks like a probe"),
        (200, PROBE, "80% of the latest rows are inputs that came before: looks like a probe"),
        (300, NONE, ""),
    ],
)
@pytest.mark.parametrize("addresses", [1, 5])
def test_rows_that_mostly_repeat_inputs_look_like_a_probe_whoever_sends_them(
    addresses: int, inputs: int, kind: str, words: str
) -> None:
    clients = ClientGroups()
    for number in range(1000):
        clients.record_row(f"10.0.0.{number % addresses}", 1 + number % 10)
        clients.latest.inputs += number < inputs
        clients.latest.repeats += number >= inputs
    found = pattern_of(clients, EscalationLimit(clients, 2.0), "", [])
    assert (found.kind, found.senders) == (kind, ())
    assert found.text.startswith(words)


class OneOver:
    """A limit that one client is over."""

    planned, usual, acts = 0.1, 0.1, True

    def is_over(self, sender: Sender) -> bool:
        return sender.name == "10.0.0.3"


@pytest.mark.parametrize(
    ("inputs", "words"), [(0, "the same input"), (1, "the same input"), (20, "the same 20 inputs")]
)
def test_a_client_over_its_limit_sent_the_same_input_though_others_sent_that_before(inputs: int, words: str) -> None:
    clients = ClientGroups()
    for number in range(1000):
        connection = 1 + number % 4
        clients.record_row(f"10.0.0.{connection}", connection)
        clients.latest.repeats += 1
    for sender in clients.senders():
        sender.inputs += inputs
    limit: Any = OneOver()
    found = pattern_of(clients, cast(EscalationLimit, limit), "", [])
    assert found.kind == REPEATS
    assert found.text.startswith(f"one client (25% of the rows) sent {words} again and again, which the cascade wants")
