"""WattTime, API v3: marginal emission rates of regions, by user and password; CAISO_NORTH needs no subscription.

Values are pounds of CO2 per megawatt-hour and become g/kWh.  They come from a model (MOER), so they are estimates.  A
token holds for half an hour.  A new one is fetched before that, and once more if one is refused.  The signal index is a
percentile and no mass, and is refused.
"""

from __future__ import annotations

import base64
import logging
import re
import time

import msgspec

from clover.carbon.layouts import HowKnown
from clover.carbon.providers.http import ApiClient, Values, decode
from clover.carbon.providers.live import LiveSource, Series, check_zone, iso, seconds
from clover.errors import CarbonError, ConfigError
from clover.types import Reading

log = logging.getLogger("clover.carbon")

STEP_S = 300.0
G_PER_KWH = 453.59237 / 1000.0
"""A pound per megawatt-hour in grams per kilowatt-hour."""
LONGEST_PAST_S = 32 * 86_400.0
TOKEN_S = 25 * 60.0
_REGION = re.compile(r"[A-Z0-9_]{2,40}")


class _Login(msgspec.Struct):
    token: str


class _Point(msgspec.Struct):
    """A value with its time."""

    point_time: str
    value: float | None


class _Model(msgspec.Struct):
    """The model that a series is from, by its date."""

    date: str = ""


class _Meta(msgspec.Struct):
    """What a series is."""

    region: str
    signal_type: str
    units: str
    data_point_period_seconds: int = 300
    model: _Model | None = None


class _Answer(msgspec.Struct):
    """A series of a region."""

    data: Values[_Point]
    meta: _Meta


def parse(body: bytes, series: Series, known: HowKnown, name: str = "watttime") -> tuple[list[Reading], str]:
    """Return the readings of an answer, each `known` so, and the date of the model; CarbonError if it is something
    else, of another region, or in another unit."""
    answer = decode(body, _Answer, name)
    meta = answer.meta
    check_zone(name, series.zone, meta.region)
    if (meta.signal_type, meta.units) != ("co2_moer", "lbs_co2_per_mwh"):
        raise CarbonError(
            f"{name}: the answer is {meta.signal_type[:40]!r} in {meta.units[:40]!r}, not co2_moer in lbs_co2_per_mwh",
            kind="answer",
        )
    step_s = float(meta.data_point_period_seconds)
    if not 0.0 < step_s <= 86_400.0:
        raise CarbonError(f"{name}: values that hold for {step_s:g} s are no intensity of a moment", kind="answer")
    readings = [
        msgspec.structs.replace(
            series.at(seconds(point.point_time, name), point.value * G_PER_KWH, known), step_s=step_s
        )
        for point in answer.data
        if point.value is not None
    ]
    return readings, meta.model.date if meta.model is not None else ""


def region_of(argument: str) -> str:
    """Return the region that `watttime:ARGUMENT` names; ConfigError if it does not look like one."""
    region = argument.strip().upper()
    if not _REGION.fullmatch(region):
        raise ConfigError(f"watttime:REGION takes a region as CAISO_NORTH, not {argument!r}")
    return region


class WattTimeSource(LiveSource):
    """One region."""

    poll_s = 60.0
    lag_s = 600.0  # the nowcast is made anew every five minutes, and taken to be there one step later

    def __init__(self, region: str, client: ApiClient, user: str, password: str) -> None:
        super().__init__(client.name, Series("watttime", region, "marginal", "direct", STEP_S), client)
        self._basic = base64.b64encode(f"{user}:{password}".encode()).decode()
        client.secrets.add(self._basic)
        self._token = ""
        self._until_s = 0.0  # monotonic
        self._model = ""

    async def _login(self) -> str:
        if not self._token or time.monotonic() >= self._until_s:
            body = await self.client.get("/login", headers={"Authorization": f"Basic {self._basic}"})
            self._drop_token()
            self._token = decode(body, _Login, self.name).token
            if not re.fullmatch(r"[\x21-\x7e]{1,4096}", self._token):
                self._token = ""
                raise CarbonError(f"{self.name}: the login gives no token", kind="answer")
            self.client.secrets.add(self._token)
            self._until_s = time.monotonic() + TOKEN_S
        return self._token

    async def _get(self, what: str, known: HowKnown, **more: str) -> list[Reading]:
        params = {"region": self.series.zone, "signal_type": "co2_moer", **more}
        fresh = not self._token
        try:
            body = await self._call(what, params)
        except CarbonError as error:
            if error.status != 401 or fresh:
                raise
            self._drop_token()  # it may have ended before its time
            body = await self._call(what, params)
        readings, model = parse(body, self.series, known, self.name)
        if self._model and model and model != self._model:
            log.warning("%s: values come from another model from now on (%s, before %s)", self.name, model, self._model)
        self._model = model or self._model
        return readings

    async def _call(self, what: str, params: dict[str, str]) -> bytes:
        token = await self._login()
        return await self.client.get(f"/v3/{what}", params, {"Authorization": f"Bearer {token}"})

    def _drop_token(self) -> None:
        self.client.secrets.discard(self._token)
        self._token = ""

    async def _latest(self, grid_s: float) -> list[Reading]:
        return await self._get("forecast", "estimated", horizon_hours="0")

    async def _ahead(self, grid_s: float, horizon_s: float) -> list[Reading]:
        return await self._get("forecast", "forecast", horizon_hours="72")

    async def _past(self, start_s: float, end_s: float) -> list[Reading]:
        start = iso(max(start_s, end_s - LONGEST_PAST_S))
        return await self._get("historical", "estimated", start=start, end=iso(end_s))
