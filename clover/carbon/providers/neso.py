"""NESO's Carbon Intensity API: Great Britain and its regions, no key, half-hours, average intensity, CC BY 4.0.

`actual` is null for slots that are running or were just over, and absent for regions: the forecast stands in, and is
labelled so.  The factors are those of burning, except that biomass includes its supply, so the scope is unknown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from clover.carbon.providers.http import ApiClient, Values, decode
from clover.carbon.providers.live import LiveSource, Series, check_zone, iso, seconds
from clover.errors import CarbonError, ConfigError
from clover.hints import did_you_mean
from clover.types import Reading

STEP_S = 1800.0
LONGEST_PAST_S = 14 * 86_400.0
REGIONS = {
    1: "North Scotland",
    2: "South Scotland",
    3: "North West England",
    4: "North East England",
    5: "Yorkshire",
    6: "North Wales",
    7: "South Wales",
    8: "West Midlands",
    9: "East Midlands",
    10: "East England",
    11: "South West England",
    12: "South England",
    13: "London",
    14: "South East England",
    15: "England",
    16: "Scotland",
    17: "Wales",
}
_POSTCODE = re.compile(r"[A-Z]{1,2}[0-9][A-Z0-9]?")


class _Intensity(msgspec.Struct):
    """The two values of a slot, in gCO2/kWh."""

    forecast: float | None = None
    actual: float | None = None


class _Slot(msgspec.Struct, rename={"start": "from"}):
    """One half-hour."""

    start: str
    intensity: _Intensity


class _Region(msgspec.Struct):
    """A region with its slots; `regionid` is absent in answers about a postcode of some age."""

    data: Values[_Slot]
    regionid: int | None = None
    postcode: str | None = None


class _National(msgspec.Struct):
    data: Values[_Slot]


class _Regional(msgspec.Struct):
    data: list[_Region] | _Region


def parse_national(body: bytes, series: Series, name: str = "neso") -> list[Reading]:
    """Return the readings of an answer about Great Britain; CarbonError if it is none."""
    return _readings(decode(body, _National, name).data, series, name)


def parse_regional(body: bytes, series: Series, place: str, name: str = "neso") -> list[Reading]:
    """Return the readings of an answer about a region (`place` is its number) or a postcode; CarbonError if it is none,
    or about another place."""
    found = decode(body, _Regional, name).data
    regions = found if isinstance(found, list) else [found]
    if len(regions) != 1:
        raise CarbonError(f"{name}: the answer is about {len(regions)} regions, not one", kind="answer")
    region = regions[0]
    check_zone(name, place, str(region.regionid) if place.isdecimal() else region.postcode or "")
    return _readings(region.data, series, name)


def _readings(slots: Sequence[_Slot], series: Series, name: str) -> list[Reading]:
    readings = []
    for slot in slots:
        at_s, intensity = seconds(slot.start, name), slot.intensity
        if intensity.actual is not None:
            readings.append(series.at(at_s, intensity.actual, "published"))
        elif intensity.forecast is not None:
            readings.append(series.at(at_s, intensity.forecast, "forecast"))
    return readings


def place_of(argument: str) -> str:
    """Return the number of the region, or the postcode, that `neso:ARGUMENT` names; empty for Great Britain.  Raises
    ConfigError."""
    wanted = argument.strip().upper()
    if wanted in ("", "GB"):
        return ""
    if wanted.isdecimal() and int(wanted) in REGIONS:
        return str(int(wanted))
    names = {region.upper(): str(number) for number, region in REGIONS.items()}
    if wanted in names:
        return names[wanted]
    outward = wanted.partition(" ")[0]
    if _POSTCODE.fullmatch(outward):
        return outward
    raise ConfigError(
        f"neso:{argument} is no region of Great Britain{did_you_mean(wanted, names)}: give its number (1 to 17), its "
        "name as London, or the first half of a postcode as SW1"
    )


class NesoSource(LiveSource):
    """Great Britain, or the region or postcode `place`."""

    poll_s = 60.0
    lag_s = 0.0  # there is a forecast of the running half-hour before it begins

    def __init__(self, place: str, client: ApiClient) -> None:
        series = Series("neso", f"GB-{place}" if place else "GB", "average", "unknown", STEP_S)
        super().__init__(client.name, series, client)
        self._place = place
        kind = "regionid" if place.isdecimal() else "postcode"
        self._suffix = f"/{kind}/{place}" if place else ""

    def _parse(self, body: bytes) -> list[Reading]:
        if self._place:
            return parse_regional(body, self.series, self._place, self.name)
        return parse_national(body, self.series, self.name)

    async def _latest(self, grid_s: float) -> list[Reading]:
        path = f"/regional{self._suffix}" if self._place else "/intensity"
        return self._parse(await self.client.get(path))

    async def _ahead(self, grid_s: float, horizon_s: float) -> list[Reading]:
        return await self._span(f"{iso(grid_s)}/fw48h")

    async def _past(self, start_s: float, end_s: float) -> list[Reading]:
        return await self._span(f"{iso(max(start_s, end_s - LONGEST_PAST_S))}/{iso(end_s)}")

    async def _span(self, span: str) -> list[Reading]:
        base = "/regional/intensity" if self._place else "/intensity"
        return self._parse(await self.client.get(f"{base}/{span}{self._suffix}"))
