"""Usage by variant, slice and tenant: its sums are the model's, whatever was sent by whom."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.accounting import Account, ProfiledEnergy, WorkerMeter
from clover.accounting.usage import UsageKey
from clover.types import EnergySample, Reading

SECOND_NS = 1_000_000_000
READING = Reading(g_per_kwh=300.0, at_s=0.0, provider="test")


def sample(total_j: float, seconds: float) -> EnergySample:
    return EnergySample(device="cpu0", at_ns=round(seconds * SECOND_NS), total_j=total_j, idle_w=2.0, method="modelled")


def meter(variant: str = "small", profiled: bool = True) -> WorkerMeter:
    per_row = ProfiledEnergy([1.0, 1.0, 0.8, 0.7, 0.6]) if profiled else ProfiledEnergy()
    return WorkerMeter(family="toy", variant=variant, device="cpu0", placement="cpu0:1c@0", slices=1, profiled=per_row)


def account_with(*meters: WorkerMeter) -> Account:
    account = Account(pue=1.5)
    account.add_device("cpu0", 2)
    for one in meters:
        account.attach(one)
    account.close_window(sample(0.0, 0.0), READING)
    return account


def batch(one: WorkerMeter, *tenants: str, escalated: int = 0) -> None:
    names = list(tenants)
    one.add(len(names), 1_000_000, 1_000_000)
    one.charge(names)
    names[:escalated] = [""] * escalated
    one.answered += len(names) - escalated
    one.record_answered(names)


def key(tenant: str, variant: str = "small") -> UsageKey:
    return UsageKey("toy", variant, "cpu0", "cpu0:1c@0", tenant)


@pytest.mark.parametrize("profiled", [True, False])
def test_joules_are_split_by_the_energy_of_the_rows(profiled: bool) -> None:
    one = meter(profiled=profiled)
    account = account_with(one)
    batch(one, "acme", "acme", "acme", "")
    account.close_window(sample(14.0, 1.0), READING)
    found = account.usage
    assert found[key("acme")].rows == 3
    assert found[key("")].rows == 1
    assert found[key("acme")].active_j == pytest.approx(9.0)
    assert found[key("")].active_j == pytest.approx(3.0)
    assert set(found[key("acme")].energy) == {"modelled"}
    assert found[key("acme")].active_g == pytest.approx(3 * found[key("")].active_g)


def test_rows_cost_what_their_batch_cost_and_escalated_ones_cost_where_they_were() -> None:
    one = meter()
    account = account_with(one)
    batch(one, "acme", "acme", "acme", "acme", escalated=2)  # 0.6 J a row
    batch(one, "b")  # 1 J
    account.close_window(sample(2.0 + 3.4, 1.0), READING)
    assert account.usage[key("acme")].rows == 2
    assert account.usage[key("acme")].active_j == pytest.approx(2.4)
    assert account.usage[key("b")].active_j == pytest.approx(1.0)


def test_a_window_in_which_no_batch_ended_is_split_as_the_one_before() -> None:
    one = meter()
    account = account_with(one)
    batch(one, "acme", "")
    account.close_window(sample(4.0, 1.0), READING)
    account.close_window(sample(10.0, 2.0), READING)  # nothing ended: no modelled joules, so nothing is active
    before = account.usage[key("acme")].active_j
    assert before == pytest.approx(1.0)
    one.window_busy_ns = 1_000  # it is busy with a long batch
    account.close_window(sample(16.0, 3.0), READING)
    assert account.usage[key("acme")].active_j == pytest.approx(before + 2.0)


def test_audits_are_no_tenants() -> None:
    one = meter()
    account = account_with(one)
    one.add(4, 1_000_000, 1_000_000)
    one.charge(["acme", "", "", ""])  # of which two are audits
    one.record_passed_on(0, 2, 0.0)
    account.close_window(sample(6.0, 1.0), READING)
    assert account.usage[key("acme")].active_j == pytest.approx(1.0)
    assert account.usage[key("")].active_j == pytest.approx(1.0)


@given(
    st.lists(
        st.lists(
            st.tuples(
                st.integers(0, 1),
                st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=1, max_size=6),
                st.integers(0, 2),
            ),
            max_size=4,
        ),
        min_size=1,
        max_size=6,
    ),
    st.floats(0.0, 50.0),
)
def test_sums_over_tenants_are_the_models(windows: list[list[tuple[int, list[str], int]]], joules: float) -> None:
    meters = meter("small"), meter("large", profiled=False)
    account, total_j, answered = account_with(*meters), 0.0, [0, 0]
    for at, batches in enumerate(windows, 1):
        for which, tenants, escalated in batches:
            escalated = min(escalated, len(tenants))
            batch(meters[which], *tenants, escalated=escalated)
            answered[which] += len(tenants) - escalated
        total_j += 2.0 + joules
        account.close_window(sample(total_j, float(at)), READING)
    for which, variant in enumerate(("small", "large")):
        mine = [usage for found, usage in account.usage.items() if found.variant == variant]
        assert sum(usage.rows for usage in mine) == answered[which]
        active = account.by_variant("active").get(("toy", variant, "modelled"))
        if active is not None:
            assert sum(usage.active_j for usage in mine) == pytest.approx(active.joules, rel=1e-12)
            assert sum(usage.active_g for usage in mine) == pytest.approx(active.grams, rel=1e-12)
        assert all(usage.active_j >= -1e-9 for usage in mine)
