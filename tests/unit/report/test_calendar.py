"""Hours, days and months, where clocks change, and times as people write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.errors import ConfigError
from clover.report.calendar import TIMES, TimeBy, begin_of, moment, name_of, time_words, zone_of
from tests.support.examples import examples

BERLIN, KOLKATA = ZoneInfo("Europe/Berlin"), ZoneInfo("Asia/Kolkata")


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def end_of(start: float, by: TimeBy, zone: tzinfo) -> float:
    """Return when the hour, day or month that began at `start` ends, in Unix seconds."""
    if by == "hour":
        return start + 3600.0
    local = datetime.fromtimestamp(start, zone)
    # Noon of the next day, or a day of the next month, whatever the clock does in between.
    later = local.replace(hour=12) + timedelta(days=1) if by == "day" else local.replace(day=28) + timedelta(days=7)
    return begin_of(later.timestamp(), by, zone)


def test_a_day_may_have_23_or_25_hours() -> None:
    for text, hours in (("2026-03-29T12:00+02:00", 23), ("2026-10-25T12:00+01:00", 25), ("2026-11-20T12:00+01:00", 24)):
        start = begin_of(at(text), "day", BERLIN)
        assert end_of(start, "day", BERLIN) - start == hours * 3600


def test_hours_that_a_clock_repeats_are_two() -> None:
    first, second = at("2026-10-25T02:30+02:00"), at("2026-10-25T02:30+01:00")
    names = [name_of(begin_of(moment_, "hour", BERLIN), "hour", BERLIN) for moment_ in (first, second)]
    assert names == ["2026-10-25 02:00+02:00", "2026-10-25 02:00+01:00"]
    assert begin_of(second, "hour", BERLIN) - begin_of(first, "hour", BERLIN) == 3600


def test_months_begin_at_local_midnight() -> None:
    assert name_of(begin_of(at("2026-11-30T23:30+00:00"), "month", BERLIN), "month", BERLIN) == "2026-12"
    assert name_of(begin_of(at("2026-11-30T23:30+00:00"), "month", UTC), "month", UTC) == "2026-11"
    start = begin_of(at("2028-02-29T12:00+00:00"), "month", UTC)
    assert end_of(start, "month", UTC) == at("2028-03-01T00:00+00:00")


@settings(max_examples=examples(150))
@given(st.integers(0, 4_000_000_000), st.sampled_from(TIMES), st.sampled_from([UTC, BERLIN, KOLKATA]))
def test_a_time_lies_in_its_own_hour_day_and_month(now: int, by: str, zone: ZoneInfo) -> None:
    start = begin_of(now, by, zone)  # type: ignore[arg-type]
    end = end_of(start, by, zone)  # type: ignore[arg-type]
    assert start <= now < end
    assert begin_of(end, by, zone) == end  # type: ignore[arg-type]


NOW = at("2026-11-28T02:00+00:00")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11", "2026-11-01T00:00+01:00"),
        ("2026-11-20", "2026-11-20T00:00+01:00"),
        ("2026-11-20T06:00", "2026-11-20T06:00+01:00"),
        ("2026-11-20T06:00Z", "2026-11-20T06:00+00:00"),
        ("2026-11-20T06:00+05:30", "2026-11-20T06:00+05:30"),
        ("now", "2026-11-28T02:00+00:00"),
        ("12h", "2026-11-27T14:00+00:00"),
        ("7d", "2026-11-21T02:00+00:00"),
        ("1w", "2026-11-21T02:00+00:00"),
    ],
)
def test_times_are_read_as_people_write_them(text: str, expected: str) -> None:
    assert moment(text, BERLIN, NOW) == at(expected)


@pytest.mark.parametrize("text", ["yesterday", "2026-13", "2026-11-31", "7", "-7d", "2026-11-20T25:00", "99999-01-01"])
def test_what_is_no_time_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is no time: give 2026-11, 2026-11-20"):
        moment(text, UTC, NOW)


@pytest.mark.parametrize("name", ["Mars/Olympus", "../etc/passwd", "/etc/localtime", ""])
def test_an_unknown_zone_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="there is no time zone"):
        zone_of(name)


def test_times_say_their_zone() -> None:
    assert zone_of("utc") is UTC
    assert time_words(at("2026-11-20T06:00+00:00"), UTC) == "2026-11-20 06:00 UTC"
    assert time_words(at("2026-11-20T06:00+00:00"), BERLIN) == "2026-11-20 07:00 +01:00"
