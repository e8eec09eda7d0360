"""Energy costs what the grid emitted while it was used, however late it becomes known."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.accounting import Account, WorkerMeter
from clover.accounting.prices import Prices
from clover.types import EnergySample, Reading

SECOND = 1_000_000_000


def grid(g_per_kwh: float, method: str = "synthetic") -> Reading:
    return Reading(g_per_kwh=g_per_kwh, at_s=0.0, provider="test", method=method)  # type: ignore[arg-type]


def window(account: Account, second: float, total_j: float, reading: Reading, now: float, idle_w: float = 0.0) -> None:
    sample = EnergySample(device="gpu0", at_ns=int(second * SECOND), total_j=total_j, idle_w=idle_w, method="measured")
    account.close_window(sample, reading, int(now * SECOND))


def test_late_energy_is_priced_at_the_intensities_of_its_own_time() -> None:
    account = Account(pue=1.0)
    account.add_device("gpu0", 1)
    worker = account.attach(WorkerMeter(family="toy", variant="small", device="gpu0", placement="p", slices=1))
    window(account, 0, 0.0, grid(100.0), 0)
    for second in range(1, 100):  # the meter hangs while the grid is dirty ...
        worker.add(1, SECOND, SECOND)
        window(account, 0, 0.0, grid(900.0), second)
    window(account, 100, 3600.0, grid(100.0), 100, idle_w=18.0)  # ... and reads again when it is clean
    grams = (0.99 * 900.0 + 0.01 * 100.0) * 3600.0 / 3.6e6
    line = account.devices()["gpu0"]
    assert line["total_g"] == pytest.approx(grams)
    assert (line["active_g"], line["idle_no_request_g"]) == (pytest.approx(grams / 2), pytest.approx(grams / 2))


def test_every_gram_says_how_the_intensity_was_known() -> None:
    account = Account(pue=1.0)
    account.add_device("gpu0", 1)
    account.attach(WorkerMeter(family="toy", variant="small", device="gpu0", placement="p", slices=1))
    window(account, 0, 0.0, grid(360.0), 0)
    window(account, 0, 0.0, grid(360.0), 1)
    window(account, 4, 40.0, grid(720.0, "configured"), 4, idle_w=10.0)
    (idle,) = (line.grids for key, line in account.booked.items() if key.line == "idle_no_request")
    assert idle == {"synthetic": pytest.approx(10.0 * 1e-4), "configured": pytest.approx(30.0 * 2e-4)}
    assert account.collect_spans().families["toy"].grids == {"synthetic", "configured"}


readings = st.lists(
    st.tuples(st.integers(1, 20), st.floats(0.0, 1000.0), st.sampled_from(["synthetic", "configured"])),
    min_size=1,
    max_size=40,
)


@given(readings, st.lists(st.floats(0.0, 1.0), min_size=1, max_size=5))
def test_the_mean_price_of_any_stretch(history: list[tuple[int, float, str]], cuts: list[float]) -> None:
    prices = Prices(pue=1.0)
    prices.record(grid(1.0), 0)
    pieces: list[tuple[int, int, float]] = []
    now = 0
    for seconds, g_per_kwh, method in history:
        pieces.append((now, now + seconds, g_per_kwh))
        now += seconds
        prices.record(grid(g_per_kwh, method), now * SECOND)
    ends = sorted({0, now, *(round(cut * now) for cut in cuts)})
    for start, end in itertools.pairwise(ends):
        found = prices.between(prices.at(start * SECOND), prices.at(end * SECOND))
        assert sum(price.part for price in found) == pytest.approx(1.0)
        true = sum(g * max(0, min(b, end) - max(a, start)) for a, b, g in pieces) / (end - start)
        assert sum(price.part * price.grams_per_j for price in found) * 3.6e6 == pytest.approx(true, abs=1e-6)


def test_before_the_first_reading_nothing_is_priced_and_an_empty_stretch_costs_the_last() -> None:
    prices = Prices(pue=2.0)
    assert prices.between(prices.at(0), prices.at(5)) == ()
    prices.record(grid(360.0), 7)
    (price,) = prices.between(prices.at(7), prices.at(7))
    assert (price.method, price.part, price.grams_per_j) == ("synthetic", 1.0, pytest.approx(2e-4))
