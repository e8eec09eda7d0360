"""Hours, days and months of a time zone: where they begin, how they are called.  In an hour that a clock set back
repeats, both are told apart by their offset from UTC; a day may have 23 or 25 hours."""

from __future__ import annotations

import re
from datetime import UTC, datetime, tzinfo
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from clover.errors import ConfigError

TimeBy = Literal["hour", "day", "month"]
TIMES: tuple[TimeBy, ...] = ("hour", "day", "month")
_DATE = re.compile(r"\d{4}-\d{2}(-\d{2})?")


def zone_of(name: str) -> tzinfo:
    """Return the time zone called `name`, as "UTC" or "Europe/Berlin".  Raises ConfigError if there is none."""
    if name.upper() in ("UTC", "Z"):
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigError(
            f"there is no time zone {name!r} on this machine; give one as Europe/Berlin, or UTC (more come with the "
            "package tzdata)"
        ) from None


def moment(text: str, zone: tzinfo, now: float) -> float:
    """Return the Unix seconds of a time such as "2026-11", "2026-11-20", "2026-11-20T06:00" or "2026-11-20T06:00+01:00"
    (in `zone` unless it names an offset), or of a time ago such as "7d" or "12h".  Raises ConfigError."""
    if ago := re.fullmatch(r"(\d+)([hdw])", text):
        return now - int(ago[1]) * {"h": 3600, "d": 86_400, "w": 604_800}[ago[2]]
    if text == "now":
        return now
    whole = f"{text}-01" if _DATE.fullmatch(text) and len(text) == len("2026-11") else text
    try:
        time = datetime.fromisoformat(whole)
        return (time if time.tzinfo else time.replace(tzinfo=zone)).timestamp()
    except (ValueError, OverflowError):
        raise ConfigError(
            f"{text!r} is no time: give 2026-11, 2026-11-20, 2026-11-20T06:00 (with +01:00 behind it, or in --tz), or "
            "how long ago it was, as 12h, 7d or 4w"
        ) from None


def begin_of(at: float, by: TimeBy, zone: tzinfo) -> float:
    """Return when the hour, day or month of `at` began, in Unix seconds."""
    local = datetime.fromtimestamp(at, zone)
    if by == "hour":
        # By subtraction and not by replacing minutes: that could land in the other of two hours called alike.
        return at - (local.minute * 60 + local.second + local.microsecond / 1e6)
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    return (midnight if by == "day" else midnight.replace(day=1)).timestamp()


def offsets_of(start: float, end: float, zone: tzinfo) -> set[float]:
    """Return by how many seconds `zone` is ahead of UTC from `start` to `end`."""
    # In between as well: Lord Howe Island sets its clocks by half an hour.
    times = [start, *range(int(start), int(end), 30 * 86_400), end]
    offsets = [datetime.fromtimestamp(at, zone).utcoffset() for at in times]
    return {offset.total_seconds() for offset in offsets if offset is not None}


def whole_hours(start: float, end: float, zone: tzinfo) -> bool:
    """Return whether hours of `zone` are those of UTC from `start` to `end`."""
    return all(offset % 3600.0 == 0.0 for offset in offsets_of(start, end, zone))


def name_of(start: float, by: TimeBy, zone: tzinfo) -> str:
    """Return the name of the hour, day or month that began at `start`, as "2026-11-20 06:00".  Hours of zones other
    than UTC have their offset."""
    local = datetime.fromtimestamp(start, zone)
    if by == "month":
        return f"{local:%Y-%m}"
    if by == "day":
        return f"{local:%Y-%m-%d}"
    return f"{local:%Y-%m-%d %H:%M}" + ("" if zone is UTC else offset_of(local))


def time_words(at: float, zone: tzinfo, *, seconds: bool = False) -> str:
    """Return a time for people, as "2026-11-20 06:00 UTC"."""
    local = datetime.fromtimestamp(at, zone)
    text = f"{local:%Y-%m-%d %H:%M:%S}" if seconds else f"{local:%Y-%m-%d %H:%M}"
    return f"{text} UTC" if zone is UTC else f"{text} {offset_of(local)}"


def offset_of(local: datetime) -> str:
    """Return the offset of a local time from UTC, as "+01:00"."""
    text = f"{local:%z}"
    return f"{text[:3]}:{text[3:5]}"
