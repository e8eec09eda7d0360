"""Company is expected of clients that send whatever comes back, and of none that wait for their answers."""

from __future__ import annotations

import random

import pytest

from clover.runtime.router.state import MOST_HERE, Company

MS, SECOND = 1_000_000, 1_000_000_000
WAIT_NS = 4 * MS
NEVER_NS = 1 << 62


def test_company_is_expected_until_it_is_known_that_none_comes() -> None:
    company = Company(7)
    assert company.expects_more(7)
    company.record_arrival(9)
    assert company.expects_more(9 + SECOND), "of one request nothing is known"


def in_turn(
    clients: int, requests: int, company: Company, now_ns: int = 0, *, pause_ns: int = 0, wait_ns: int = WAIT_NS
) -> tuple[int, int]:
    """Let clients send their next request `pause_ns` after the last one is answered, all at once after a wait or as
    soon as no company is expected; return when they end, and how many batches waited."""
    waited = 0
    for _ in range(requests):
        for _ in range(clients):
            company.record_arrival(now_ns)
            now_ns += MS // 50
        if company.expects_more(now_ns):
            waited += 1
            now_ns += wait_ns
        now_ns += MS // 2
        for _ in range(clients):
            company.record_departure(now_ns)
            now_ns += MS // 100
        now_ns += pause_ns
    return now_ns, waited


@pytest.mark.parametrize("clients", [1, 2, 8, 64, MOST_HERE])
def test_clients_that_wait_for_their_answers_soon_wait_for_no_company(clients: int) -> None:
    company = Company(0)
    now_ns, waited = in_turn(clients, 1000, company)
    assert waited <= 8
    assert company.here == 0
    _, waited = in_turn(clients, 20_000, company, now_ns)
    assert waited == 0


def poisson(rate: float, seconds: float, company: Company, rng: random.Random, now_ns: int = 0) -> tuple[int, float]:
    """Let requests come whatever becomes of them, to batches that wait for company; return when that ends, and the part
    of the batches that were not let wait to the end."""
    next_ns, end_ns = now_ns + int(rng.expovariate(rate) * SECOND), now_ns + int(seconds * SECOND)
    batches = short = here = 0
    leaves_ns = done_ns = NEVER_NS  # the batch that waits, and the one of all that are here that is computed
    while now_ns < end_ns:
        now_ns = min(next_ns, leaves_ns, done_ns)
        if now_ns == done_ns:
            for _ in range(here):
                company.record_departure(now_ns)
            here, done_ns = 0, NEVER_NS
        elif now_ns == leaves_ns:
            batches, leaves_ns, done_ns = batches + 1, NEVER_NS, now_ns + MS // 2
        else:
            company.record_arrival(now_ns)
            next_ns += int(rng.expovariate(rate) * SECOND) + 1
            here += 1
            if done_ns == NEVER_NS:
                leaves_ns = min(leaves_ns, now_ns + WAIT_NS)
                if not company.expects_more(now_ns):
                    short, leaves_ns = short + 1, now_ns
    return now_ns, short / batches


@pytest.mark.parametrize("rate", [20.0, 200.0, 2000.0])
@pytest.mark.parametrize("seed", range(3))
def test_requests_that_come_by_themselves_wait_for_company(rate: float, seed: int) -> None:
    company, rng = Company(0), random.Random(seed)
    now_ns, _ = poisson(rate, 4.0, company, rng)
    _, short = poisson(rate, min(60.0, 10_000.0 / rate), company, rng, now_ns)
    assert short < 0.03


def test_one_that_comes_to_be_alone_is_noticed_within_some_requests() -> None:
    company, rng = Company(0), random.Random(5)
    now_ns, _ = poisson(200.0, 30.0, company, rng)
    _, waited = in_turn(1, 2000, company, now_ns)
    assert waited < 400
    _, short = poisson(200.0, 10.0, company, rng, now_ns + 10 * SECOND)
    assert short < 0.5


@pytest.mark.parametrize(("pause_ms", "wait_ms"), [(100, 4), (100, 8), (200, 20), (500, 60), (500, 150)])
def test_a_client_alone_that_pauses_waits_for_no_company(pause_ms: int, wait_ms: int) -> None:
    company = Company(0)
    now_ns, _ = in_turn(1, 100, company, pause_ns=pause_ms * MS, wait_ns=wait_ms * MS)
    _, waited = in_turn(1, 1000, company, now_ns, pause_ns=pause_ms * MS, wait_ns=wait_ms * MS)
    assert waited < 150, "one in ten tries whether that still holds"


def test_after_a_night_a_client_alone_soon_waits_for_no_company() -> None:
    company = Company(0)
    _, waited = in_turn(1, 1000, company, 10 * 3600 * SECOND)
    assert waited < 60


def test_a_client_that_waits_for_answers_among_rare_others_does_not_wait() -> None:
    company, now_ns, waited = Company(0), 0, 0
    for _ in range(200):
        now_ns, w = in_turn(1, 100, company, now_ns)
        waited += w
        company.record_arrival(now_ns)  # another client, while none of its own is here
        company.record_departure(now_ns + MS)
        now_ns += MS
    assert waited < 40


def test_more_than_are_told_apart_are_counted_alike() -> None:
    company = Company(0)
    for request in range(10 * MOST_HERE):
        company.record_arrival(request * MS)
        assert company.expects_more(request * MS)
    assert company.here == 10 * MOST_HERE
    for _ in range(10 * MOST_HERE):
        company.record_departure(SECOND)
    assert company.here == 0
