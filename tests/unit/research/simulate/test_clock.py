"""Virtual time: it leaps by what is slept, however far a run has gone."""

from __future__ import annotations

import asyncio

import pytest

from clover.research.simulate import clock

DAY_S = 86_400.0


async def _slept(seconds: list[float]) -> list[float]:
    """Sleep so often; return the times at which each sleep ended."""
    times = []
    for each in seconds:
        await asyncio.sleep(each)
        times.append(clock.now_s())
    return times


def test_time_leaps_by_what_is_slept() -> None:
    assert clock.run(_slept([1.0, 0.25, 300.0])) == [1.0, 1.25, 301.25]


@pytest.mark.parametrize("days", [100.0, 195.0, 365.0, 7300.0])
def test_timers_are_called_years_into_a_run(days: float, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = 0
    leap = clock._Leap.select

    def counted(self: clock._Leap, timeout: float | None = None) -> object:
        nonlocal turns
        turns += 1
        if turns > days + 100.0:  # asyncio waits for a day at most
            raise RuntimeError("a timer is due and never called")
        return leap(self, timeout)

    monkeypatch.setattr(clock._Leap, "select", counted)
    reached = clock.run(_slept([days * DAY_S, 0.1, 0.3]))
    assert reached == pytest.approx([days * DAY_S, days * DAY_S + 0.1, days * DAY_S + 0.4], abs=1e-6)


def test_what_never_comes_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="never comes"):
        clock.run(_forever())


async def _forever() -> None:
    await asyncio.Event().wait()
