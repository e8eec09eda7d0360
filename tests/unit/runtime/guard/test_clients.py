"""What one client sends raises no alarm and holds up no recovery, and what all send does both."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.runtime.guard.clients import (
    GROUPS,
    RECENT_ROWS,
    REMEMBERED_CLIENTS,
    VIEWS,
    ClientGroups,
    in_views,
    views_of,
)
from clover.runtime.guard.drift import AgreementWatch, ScoreWatch
from clover.runtime.guard.guard import CASCADE_OFF, OK, SERVED, TIGHTENED
from clover.runtime.guard.recovery import AgreementRecovery, ScoreRecovery
from tests.support.guard_fixture import LARGE, MINUTE, SMALL, WATCHED, Audited, Guarded

PARTS = (0.1,) * 10
NOISE = 0
"""The tenth in which all scores of a client lie that sends noise."""


def shares(one: float, others: int) -> list[float]:
    """One client with a share of the rows, and others with equal parts of the rest."""
    return [one, *[(1.0 - one) / others] * others]


class Traffic:
    """Rows of clients with such shares of them."""

    def __init__(self, of: Sequence[float], seed: int = 1) -> None:
        self.clients = ClientGroups()
        self.watch = ScoreWatch(PARTS, 10_000, clients=self.clients)
        self.draw = random.Random(seed)
        self.of = list(of)

    def client(self) -> int:
        return self.draw.choices(range(len(self.of)), self.of)[0]

    def rows_to_an_alarm(self, ill: set[int], most: int) -> int | None:
        """Send rows, noise from the clients that are `ill`; return how many it took, None if there was no alarm."""
        for row in range(most):
            client = self.client()
            at = NOISE if client in ill else self.draw.randrange(10)
            if self.watch.add(at, self.clients.record_row(f"10.0.0.{client}")):
                return row + 1
        return None


@pytest.mark.parametrize(("share", "others"), [(0.5, 1), (0.1, 5), (0.5, 3), (0.7, 1), (0.7, 12), (1 / 31, 30)])
def test_one_client_raises_no_alarm_whatever_it_sends(share: float, others: int) -> None:
    traffic = Traffic(shares(share, others))
    assert traffic.rows_to_an_alarm({0}, 20_000) is None
    assert traffic.watch.detector.statistic < 0.01 * traffic.watch.detector.limit, "nor is it urgent to audit"


@pytest.mark.parametrize(
    ("of", "most"),
    [
        ([1.0], 250),  # everyone behind one proxy
        (shares(0.9, 1), 250),
        (shares(0.5, 1), 500),
        (shares(0.7, 1), 1000),
        ([1 / 8] * 8, 300),
        ([1 / 50] * 50, 300),
    ],
)
def test_what_all_clients_send_raises_it(of: list[float], most: int) -> None:
    rows = Traffic(of).rows_to_an_alarm(set(range(len(of))), most)
    assert rows is not None
    assert rows >= 200


def test_two_clients_out_of_eight_are_enough() -> None:
    rows = Traffic([1 / 8] * 8).rows_to_an_alarm({2, 5}, 2000)
    assert rows is not None


def test_nearly_everyone_is_everyone() -> None:
    assert Traffic(shares(0.85, 4)).rows_to_an_alarm({0}, 1000) is not None


@settings(max_examples=40, deadline=None)
@given(
    st.floats(0.02, 0.7),
    st.integers(1, 20),
    st.lists(st.integers(0, 9), min_size=1, max_size=20),
    st.integers(0, 1 << 16),
)
def test_no_sequence_of_one_client_raises_an_alarm(share: float, others: int, sent: list[int], seed: int) -> None:
    traffic = Traffic(shares(share, others), seed)
    for row in range(3000):
        client = traffic.client()
        at = sent[row % len(sent)] if client == 0 else traffic.draw.randrange(10)
        assert not traffic.watch.add(at, traffic.clients.record_row(str(client)))


def test_audits_of_one_client_raise_no_alarm_and_those_of_all_do() -> None:
    for liars, most in (({0}, 20_000), ({0, 1, 2}, 1000)):
        clients, draw = ClientGroups(), random.Random(1)
        watch = AgreementWatch(clients=clients)
        alarm = None
        for row in range(most):
            client = draw.randrange(3)
            agrees = client not in liars and draw.random() < 0.9
            if watch.add(agrees, 0.9, 10_000, 1, clients.record_row(str(client))):
                alarm = row
                break
        assert (alarm is None) == (len(liars) == 1)
        assert watch.rows >= 101


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(1, 120)), max_size=20), st.booleans())
def test_views_are_what_tests_on_their_rows_would_find(sent: list[tuple[int, int, int]], looked: bool) -> None:
    """Each view is the same test on its own rows, block by block, however late a second group comes."""
    clients = ClientGroups()
    watch = AgreementWatch(clients=clients)
    alone = [AgreementWatch() for _ in range(VIEWS)]
    for client, agrees, rows in sent:
        group = clients.group_of(str(client))
        clients.recent[group] += rows
        watch.add(min(agrees, rows), 0.9, 10_000, rows, group)
        for view in np.flatnonzero(in_views(group)):
            alone[view].add(min(agrees, rows), 0.9, 10_000, rows)
        found = [alone[view].detector.statistic for view in np.flatnonzero(clients.counting())]
        if looked:
            assert watch.detector.statistic == pytest.approx(min(found), abs=1e-9)
    assert watch.detector.rows == alone[0].detector.rows


def test_one_client_holds_no_recovery_up() -> None:
    clients, draw = ClientGroups(), random.Random(1)
    scores, audits = ScoreRecovery(PARTS, 10_000, clients=clients), AgreementRecovery(clients=clients)
    while not (scores.clear.well and audits.clear.well) and scores.clear.rows < 8000:
        client = draw.randrange(4)
        group = clients.record_row(str(client))
        scores.add(NOISE if client == 0 else draw.randrange(10), group)
        audits.add(client != 0 and draw.random() < 0.9, 0.9, 10_000, 1, group)
    assert 500 < scores.clear.rows < 8000


def test_while_all_are_ill_nothing_is_well() -> None:
    clients, draw = ClientGroups(), random.Random(1)
    scores = ScoreRecovery(PARTS, 10_000, clients=clients)
    for _ in range(20_000):
        ill = draw.random() < 0.3
        scores.add(NOISE if ill else draw.randrange(10), clients.record_row(str(draw.randrange(10))))
        assert not scores.clear.well


# --- groups -----------------------------------------------------------------------------------------------------------


def test_clients_that_come_one_after_the_other_are_in_groups_of_their_own() -> None:
    clients = ClientGroups()
    assert [clients.record_row(str(client)) for client in range(GROUPS)] == list(range(GROUPS))
    assert [clients.group_of(str(client)) for client in range(GROUPS)] == list(range(GROUPS))
    assert clients.largest_share == 1 / GROUPS


def test_a_new_client_does_not_join_the_group_of_a_busy_one() -> None:
    clients = ClientGroups()
    for _ in range(1000):
        clients.record_row("busy")
    assert {clients.record_row(str(client)) for client in range(100)} == set(range(1, GROUPS))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 2000)), min_size=1, max_size=30))
def test_shares_follow_the_latest_rows_and_memory_is_bounded(sent: list[tuple[int, int]]) -> None:
    clients = ClientGroups()
    groups: dict[int, int] = {}
    for client, rows in sent:
        for _ in range(rows):
            group = clients.record_row(str(client))
        assert groups.setdefault(client, group) == group
        assert sum(clients.recent) < RECENT_ROWS
    client, _ = sent[-1]
    for _ in range(3 * RECENT_ROWS):
        clients.record_row(str(client))
    counting = clients.counting().tolist()
    assert counting == [True, *(group != groups[client] for group in range(GROUPS))]


def test_no_more_clients_are_remembered_than_that() -> None:
    clients = ClientGroups()
    first = clients.record_row("first")
    for client in range(REMEMBERED_CLIENTS):
        clients.record_row(f"{client}")
        assert clients.group_of("first") == first, "it was there lately"
    assert len(clients._groups) == REMEMBERED_CLIENTS


def test_a_view_sees_all_groups_but_its_own() -> None:
    counts = np.arange(2.0 * GROUPS).reshape(GROUPS, 2)
    seen = views_of(list(range(GROUPS)), counts)
    assert seen.shape == (VIEWS, 2)
    assert seen[0].tolist() == counts.sum(axis=0).tolist()
    for group in range(GROUPS):
        assert seen[1 + group].tolist() == (counts.sum(axis=0) - counts[group]).tolist()
        assert in_views(group).tolist() == [float(view != 1 + group) for view in range(VIEWS)]


def test_before_the_first_row_only_the_view_of_all_counts() -> None:
    assert ClientGroups().counting().tolist() == [True, *[False] * GROUPS]


# --- the guard --------------------------------------------------------------------------------------------------------


class Clients(Guarded):
    """A guard and clients by name."""

    def send(self, client: str, rows: int, *, noise: bool = False) -> None:
        for _ in range(rows):
            group = self.guard.clients.record_row(client)
            evidence = self.guard.fresh(self.draw.getrandbits(64))
            self.guard.score(SMALL, 0.0 if noise else self.draw.random(), evidence, group)

    def mixed(self, rows: int, noisy: tuple[str, ...] = (), quiet: tuple[str, ...] = ("a", "b", "c")) -> None:
        names = (*noisy, *quiet)
        for row in range(rows):
            self.send(names[row % len(names)], 1, noise=names[row % len(names)] in noisy)


def test_noise_from_one_client_changes_nothing_for_the_others() -> None:
    house = Clients()
    house.mixed(20_000, noisy=("mallory",))
    assert (house.guard.alarm_level, house.guard.alarms) == (OK, 0)
    assert not house.guard.suspicious


def test_who_raises_the_level_alone_does_so_only_while_the_others_send_less_than_a_quarter() -> None:
    house = Clients()
    house.send("mallory", 300, noise=True)
    assert house.guard.alarm_level == TIGHTENED
    stay_ns = house.guard.stay_ns
    house.wait(MINUTE // 60)
    assert house.guard.alarm_level == TIGHTENED
    house.mixed(300)
    house.wait(MINUTE // 60)
    assert (house.guard.alarm_level, house.guard.returns) == (OK, 1)
    house.mixed(20_000, noisy=("mallory",))
    assert (house.guard.alarm_level, house.guard.alarms) == (OK, 1)
    house.mixed(500, noisy=("a", "b", "c"), quiet=())  # now it is everyone, and soon
    assert (house.guard.alarm_level, house.guard.stay_ns, house.guard.relapses) == (TIGHTENED, stay_ns, 0)


def test_an_alarm_that_others_confirm_is_not_one_clients_own() -> None:
    house = Clients()
    house.mixed(1000, noisy=("a", "b", "c"), quiet=())
    assert house.guard.alarm_level == TIGHTENED
    house.mixed(1000, noisy=("a", "b", "c"), quiet=())
    house.wait(MINUTE)
    assert house.guard.alarm_level == TIGHTENED


def test_it_comes_down_while_one_client_goes_on_with_noise() -> None:
    house = Clients()
    house.mixed(1000, noisy=("mallory", "a", "b", "c"), quiet=())
    assert house.guard.alarm_level == TIGHTENED
    house.mixed(6000, noisy=("mallory",))
    house.wait(11 * MINUTE)
    assert house.guard.alarm_level == OK


def test_one_client_does_not_switch_the_cascade_off() -> None:
    house = Clients()
    house.mixed(1000, noisy=("a", "b", "c"), quiet=())
    for row in range(3000):
        group = house.guard.clients.record_row("abc"[row % 3])
        agrees = row % 3 > 0 and house.draw.random() < 0.98
        house.guard.record_comparison(SERVED, SMALL, agrees, 0.98, 2500, group=group)
    assert house.guard.alarm_level == TIGHTENED
    for row in range(1000):
        group = house.guard.clients.record_row("abc"[row % 3])
        house.guard.record_comparison(SERVED, SMALL, False, 0.98, 2500, group=group)
    assert house.guard.alarm_level == CASCADE_OFF


def test_rows_of_one_chain_are_counted_by_client() -> None:
    house = Clients()
    for row in range(6000):
        group = house.guard.clients.record_row("abc"[row % 3])
        house.guard.record_overrules(WATCHED, row % 3 == 0 or house.draw.random() < 0.1, 1, group)
    assert house.guard.alarm_level == OK
    for row in range(1500):
        house.guard.record_overrules(
            WATCHED, house.draw.random() < 0.6, 1, house.guard.clients.record_row("abc"[row % 3])
        )
    assert house.guard.alarm_level == TIGHTENED


def test_the_router_knows_the_client_of_a_row() -> None:
    house = Audited()
    for client in ("10.0.0.1", "10.0.0.2", "10.0.0.2"):
        ticket = house.router.open(1)
        ticket.client = client
        house.inputs += 1
        house.slab.input(0)[ticket.slots] = (house.inputs, 0.0)
        house.router.submit(ticket, house.done.append)  # type: ignore[arg-type]
        house.loop.turn()
        house.says(SMALL, 0)
        house.close(ticket)
        house.says(LARGE, 0)  # the audit
    assert house.router.guard.clients.recent[:3] == [1, 2, 0]
    assert house.router.guard_report()["largest_share"] == pytest.approx(2 / 3)
