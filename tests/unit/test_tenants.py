"""Tenants by their tokens, and rates whose Retry-After holds."""

from __future__ import annotations

import hashlib
import heapq
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.config import TenantConfig
from clover.errors import BadRequest
from clover.tenants import RateLimit, Tenants

SECOND = 1_000_000_000
BEGIN = 1_000 * SECOND


def tenant(name: str, **changes: Any) -> TenantConfig:
    return TenantConfig(**{"name": name, "token": f"token-of-{name}", **changes})


# --- who it is --------------------------------------------------------------------------------------------------------


def test_a_tenant_is_found_by_its_token_and_by_nothing_else() -> None:
    digest = hashlib.sha256(b"secret").hexdigest().upper()
    tenants = Tenants([tenant("acme"), TenantConfig(name="b", token_sha256=digest)])
    assert [getattr(tenants.find(token), "name", None) for token in (b"token-of-acme", b"secret", b"acme", b"")] == [
        "acme",
        "b",
        None,
        None,
    ]
    assert tenants.named("b").name == "b"
    with pytest.raises(BadRequest, match="no tenant is called 'c'; configured: acme, b"):
        tenants.named("c")


def test_no_token_is_kept() -> None:
    tenants = Tenants([tenant("acme", rate=5)])
    found = tenants.named("acme")
    shown = [str(getattr(found, name)) for name in found.__slots__] + [str(tenants.as_json())]
    assert not any("token-of-acme" in text for text in shown)


def test_a_reload_keeps_numbers_and_how_much_of_a_rate_was_used() -> None:
    tenants = Tenants([tenant("a", rate=1, burst=2), tenant("b")])
    before = {one.name: one for one in tenants.all()}
    assert before["a"].limit is not None
    assert before["a"].limit.take(1, 2, BEGIN) == 0
    tenants.use([tenant("c"), tenant("a", rate=2, burst=4, priority=3)])
    a, c = tenants.named("a"), tenants.named("c")
    assert a.limit is not None
    assert (a.limit.rate, a.limit.has(1, BEGIN), a.limit.has(2, BEGIN + SECOND)) == (2, False, True)
    assert a.flow == 3 << 40 | before["a"].flow & 0xFF
    assert c.flow not in (before["b"].flow, before["a"].flow)
    assert tenants.find(b"token-of-b") is None


# --- rates ------------------------------------------------------------------------------------------------------------


def test_a_burst_passes_at_once_and_then_the_rate() -> None:
    limit = RateLimit(10.0, 5)
    passed = [limit.take(key, 1, BEGIN) for key in range(6)]
    assert passed[:5] == [0] * 5
    assert passed[5] == 1
    assert limit.take(100, 1, BEGIN + SECOND // 10) == 0
    assert limit.take(101, 1, BEGIN + SECOND // 10) > 0


def test_who_comes_too_early_learns_what_is_left_and_keeps_its_place() -> None:
    limit = RateLimit(1.0, 1)
    assert limit.take(1, 1, BEGIN) == 0
    assert [limit.take(key, 1, BEGIN) for key in (2, 3)] == [1, 3]  # half of the rate is promised
    assert limit.early_s(3, BEGIN + SECOND // 10) == 3
    assert limit.take(2, 1, BEGIN + SECOND) == 0
    assert limit.take(3, 1, BEGIN + SECOND) == 2
    assert limit.take(3, 1, BEGIN + 3 * SECOND) == 0


def test_places_that_nobody_comes_for_cost_nothing() -> None:
    limit = RateLimit(10.0, 10)
    passed = refused = 0
    for step in range(2000):  # 100 rows/s, none of which comes back
        if limit.take(step + 1, 1, BEGIN + step * SECOND // 100):
            refused += 1
        else:
            passed += 1
    assert passed == pytest.approx(10 + 10 * 20, abs=2)
    assert refused == 2000 - passed


@given(
    st.floats(0.5, 200.0),
    st.integers(1, 50),
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 3)), min_size=1, max_size=120),
    st.integers(0, 1900),
)
def test_a_retry_after_holds_and_the_rate_too(
    rate: float, burst: int, arrivals: list[tuple[int, int]], late_ms: int
) -> None:
    limit, now_ns, passed, horizon = RateLimit(rate, burst), BEGIN, 0, 0
    events: list[tuple[int, int, int, int]] = []  # when, request, rows, seconds that it was asked to wait
    for request, (pause_ms, rows) in enumerate(arrivals, 1):
        now_ns += pause_ms * 1_000_000
        events.append((now_ns, request, min(rows, burst), 0))
    heapq.heapify(events)
    while events:
        at_ns, request, rows, asked = heapq.heappop(events)
        wait_s = limit.take(request, rows, at_ns)
        if not wait_s:
            passed += rows
            # What was promised may be owed for a while, at half of the rate for as long as clients may be late.
            assert passed <= burst + rate * (at_ns - BEGIN) / SECOND + rate * 3 + burst
        elif asked and asked < 600:
            raise AssertionError(f"asked to come after {asked} s, and refused then")
        elif wait_s < 600:
            heapq.heappush(events, (at_ns + wait_s * SECOND + late_ms * 1_000_000, request, rows, wait_s))
        else:
            horizon += 1
