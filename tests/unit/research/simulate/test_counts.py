"""What a simulated controller counts of its load, and how long instances take."""

from __future__ import annotations

import asyncio
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.control.state.arrivals import WINDOW_S
from clover.errors import DeviceError
from clover.research.simulate import clock, families, replay
from clover.research.simulate.fleet import SimulatedDevice
from clover.research.simulate.loads import Load
from clover.types import Placement
from tests.support.examples import examples

RATE = 40.0


def test_windows_of_short_steps_share_arrivals() -> None:
    """Steps of a second see ten-second windows slide: one look moves a count by a tenth of what chance does to two
    windows apart; in steps of a minute each window is its own."""
    seconds = replay._observe_rates([RATE] * 4000, 1.0, seed=1)
    minutes = replay._observe_rates([RATE] * 4000, 60.0, seed=1)
    chance = (RATE / WINDOW_S) ** 0.5
    for counts in (seconds, minutes):
        assert statistics.mean(counts) == pytest.approx(RATE, rel=0.01)
        assert statistics.stdev(counts) == pytest.approx(chance, rel=0.1)
    assert statistics.stdev(np.diff(seconds)) == pytest.approx(chance * (2.0 / WINDOW_S) ** 0.5, rel=0.1)
    assert statistics.stdev(np.diff(minutes)) == pytest.approx(chance * 2.0**0.5, rel=0.1)


def test_a_window_still_has_what_arrived_before_the_load_rose() -> None:
    rates = [0.0] * 20 + [1000.0] * 20
    counts = replay._observe_rates(rates, 1.0, seed=1)
    assert counts[:20] == [0.0] * 20
    assert counts[24] == pytest.approx(500.0, rel=0.1)  # the fifth second of it
    assert counts[-1] == pytest.approx(1000.0, rel=0.1)


@given(
    st.lists(st.floats(0.0, 60.0), max_size=60).map(sorted),
    st.sampled_from([0.25, 1.0, 4.0, 20.0]),
)
@settings(max_examples=examples(40))
def test_arrivals_that_are_known_are_counted_as_a_server_does(arrivals_s: list[float], step_s: float) -> None:
    steps = int(60.0 / step_s)
    for index, rate in enumerate(replay._count_arrivals(arrivals_s, step_s, steps)):
        end_s = index * step_s + min(replay.LAG_S, step_s)
        within = sum(end_s - WINDOW_S <= at_s < end_s for at_s in arrivals_s)
        assert rate == pytest.approx(within / min(WINDOW_S, end_s))


def test_a_day_may_be_short() -> None:
    whole = Load("diurnal", "diurnal", 10.0, per_s=True).rates(1.0, 0.0, 3600.0, 24, 0)
    short = Load("diurnal", "diurnal", 10.0, per_s=True, day_s=240.0).rates(1.0, 240.0, 10.0, 24, 0)
    assert short == pytest.approx(whole)
    assert max(whole) == pytest.approx(14.0, rel=0.01)


def test_instances_of_a_device_are_made_and_removed_one_after_another() -> None:
    (shape,) = families.gpus(1)
    device = SimulatedDevice(shape, create_s=0.5, destroy_s=1.0)
    two = [Placement(device="gpu0", profile="3g.20gb", start=start, size=4) for start in (0, 4)]

    async def story() -> tuple[float, float]:
        began_s = clock.now_s()
        await asyncio.gather(*(device.create(place) for place in two))
        made_s = clock.now_s()
        await asyncio.gather(*(device.destroy(place) for place in two))
        return made_s - began_s, clock.now_s() - made_s

    assert clock.run(story()) == pytest.approx((1.0, 2.0))
    assert not device.made


def test_a_gpu_that_is_lost_while_it_is_cut_has_no_instance() -> None:
    (shape,) = families.gpus(1)
    device = SimulatedDevice(shape, create_s=0.5)

    async def story() -> None:
        cutting = asyncio.ensure_future(device.create(Placement(device="gpu0", profile="3g.20gb", start=0, size=4)))
        await asyncio.sleep(0.1)
        device.lost = True
        device.made.clear()
        with pytest.raises(DeviceError, match="gpu0 is lost"):
            await cutting

    clock.run(story())
    assert not device.made
