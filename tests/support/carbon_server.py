"""A local server that replays what providers of carbon intensity answer, well or in every bad way, in a thread.

The documents have the form of each API's documentation, with times around `now`; the grid behind all of them is
`grid_g`.  A `Fault` replaces the answers to all paths but WattTime's login.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import json
import math
import ssl
import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from clover.carbon.providers import PROVIDERS
from clover.config import ProviderConfig

NOW_S = 1_790_001_000.0  # 2026-09-21, at 1,000 s into a step of each provider
KEY, USER, PASSWORD, TOKEN = "key-of-a-test", "somebody", "pass-of-a-test", "token-of-a-test"
_BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
LB = 453.59237 / 1000.0
AHEAD_S = 48 * 3600.0


@dataclass(frozen=True)
class Request:
    """A request as it came."""

    path: str
    params: dict[str, str]
    headers: dict[str, str]


@dataclass(frozen=True)
class Answer:
    """An answer.  `declared`: its Content-Length, if it is a lie (-1: none is sent).  `manner`: hang never answers,
    drip sends a byte every now and then without end, reset closes without a word, raw sends the body alone."""

    body: bytes = b"{}"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    declared: int | None = None
    manner: str = "plain"


def iso(at_s: float, form: str = "%Y-%m-%dT%H:%MZ") -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime(form)


def grid_g(at_s: float) -> float:
    """The intensity at a time: a whole number that changes every five minutes."""
    return 100.0 + (at_s // 300.0) % 97


def times(start_s: float, end_s: float, step_s: float) -> list[float]:
    first = math.floor(start_s / step_s)
    return [n * step_s for n in range(first, math.floor(end_s / step_s) + 1)]


def neso(request: Request, now_s: float) -> Any:
    parts = request.path.strip("/").split("/")
    regional = parts[0] == "regional"
    moments = [part for part in parts if part[:2] == "20"]
    start_s = datetime.fromisoformat(moments[0]).timestamp() if moments else now_s
    end_s = (
        now_s + AHEAD_S if "fw48h" in parts else datetime.fromisoformat(moments[1]).timestamp() if moments else now_s
    )
    slots = []
    for at_s in times(start_s, end_s, 1800.0):
        actual = None if at_s + 1800.0 > now_s or regional else grid_g(at_s)
        intensity = {"forecast": grid_g(at_s), "index": "moderate"} | ({} if regional else {"actual": actual})
        slots.append({"from": iso(at_s), "to": iso(at_s + 1800.0), "intensity": intensity})
    if not regional:
        return {"data": slots}
    place = {"regionid": int(parts[-1])} if "regionid" in parts else {"regionid": 13, "postcode": parts[-1]}
    region = {**place, "dnoregion": "UKPN London", "shortname": "London", "data": slots}
    return {"data": region if moments else [region]}


def energy_charts(request: Request, now_s: float) -> Any:
    day_s = math.floor(now_s / 86_400.0) * 86_400.0
    ahead = request.path.endswith("forecast")
    start_s = datetime.fromisoformat(request.params["start"]).timestamp() if "start" in request.params else day_s
    at = [int(time) for time in times(now_s if ahead else start_s, now_s + AHEAD_S, 900.0)]
    known = [grid_g(time) if time + 1800.0 <= now_s else None for time in at]
    foreseen = [None if value is not None else grid_g(time) for time, value in zip(at, known, strict=True)]
    answer = {"unix_seconds": at, "co2eq_forecast": foreseen, "deprecated": False}
    return answer if ahead else answer | {"co2eq": known, "substitute": False}


def energinet(request: Request, now_s: float) -> Any:
    area = json.loads(request.params["filter"])["PriceArea"][0]
    start = request.params.get("start", "")
    ahead = request.path.endswith("Prog")
    days = int(start.removeprefix("now-P").removesuffix("D")) if start.endswith("D") else 0
    at = times(now_s if ahead else now_s - max(days * 86_400.0, 3300.0), now_s + AHEAD_S if ahead else now_s, 300.0)
    form = "%Y-%m-%dT%H:%M:%S"
    rows = [{"Minutes5UTC": iso(time, form), "PriceArea": area, "CO2Emission": grid_g(time)} for time in at]
    if "DESC" in request.params["sort"]:
        rows = rows[::-1][: int(request.params["limit"])]
    return {"total": len(rows), "limit": 0, "dataset": request.path.rpartition("/")[2], "records": rows}


def rte(request: Request, now_s: float) -> Any:
    export = request.path.endswith("/exports/json")
    at = times(now_s - (7 * 86_400.0 if export else 0.0), now_s, 900.0)
    form = "%Y-%m-%dT%H:%M:%S+00:00"
    rows = [{"date_heure": iso(time, form), "perimetre": "France", "taux_co2": grid_g(time)} for time in at]
    return rows if export else {"total_count": len(rows), "results": rows[::-1]}


def electricity_maps(request: Request, now_s: float) -> Any:
    if request.headers.get("auth-token") != KEY:
        return Answer(b'{"error":"Unauthorized","message":"Invalid auth-token"}', 401)
    what = request.path.rpartition("/")[2]
    if what == "zones":
        return {"DE": {"zoneName": "Germany", "access": ["carbon-intensity/latest"]}, "PL": {"zoneName": "Poland"}}
    zone = request.params["zone"]

    def item(at_s: float) -> dict[str, Any]:
        return {
            "zone": zone,
            "carbonIntensity": grid_g(at_s),
            "datetime": iso(at_s, "%Y-%m-%dT%H:%M:%S.000Z"),
            "updatedAt": iso(now_s, "%Y-%m-%dT%H:%M:%S.000Z"),
            "emissionFactorType": request.params["emissionFactorType"],
            "isEstimated": at_s + 3600.0 > now_s,
            "estimationMethod": "FORECASTS_HIERARCHY",
        }

    if what == "latest":
        return item(times(now_s, now_s, 3600.0)[0]) | {"temporalGranularity": "hourly"}
    if what == "history":
        past = [item(at_s) for at_s in times(now_s - 23 * 3600.0, now_s, 3600.0)]
        return {"zone": zone, "history": past, "temporalGranularity": "hourly"}
    ahead = times(now_s, now_s + 3600.0 * int(request.params["horizonHours"]), 3600.0)
    foreseen = [{"carbonIntensity": grid_g(at_s), "datetime": iso(at_s)} for at_s in ahead]
    return {"zone": zone, "forecast": foreseen, "temporalGranularity": "hourly", "updatedAt": iso(now_s)}


def watttime(request: Request, now_s: float) -> Any:
    given = request.headers.get("authorization", "")
    if request.path == "/login":
        return {"token": TOKEN} if given == _BASIC else Answer(b'{"error":"Invalid credentials"}', 401)
    if given != f"Bearer {TOKEN}":
        return Answer(b'{"error":"Unauthorized"}', 401)
    if request.path.endswith("historical"):
        start_s, end_s = (datetime.fromisoformat(request.params[name]).timestamp() for name in ("start", "end"))
    else:
        start_s, end_s = now_s, now_s + 3600.0 * int(request.params["horizon_hours"])
    points = [{"point_time": iso(at_s), "value": grid_g(at_s) / LB} for at_s in times(start_s, end_s, 300.0)]
    meta = {
        "region": request.params["region"],
        "signal_type": "co2_moer",
        "units": "lbs_co2_per_mwh",
        "data_point_period_seconds": 300,
        "model": {"date": "2026-05-01"},
        "warnings": [],
        "generated_at": iso(now_s),
    }
    return {"data": points, "meta": meta}


def carbon_aware_sdk(request: Request, now_s: float) -> Any:
    location = request.params["location"]
    if request.path.endswith("current"):
        ahead = [
            {"location": location, "timestamp": iso(at_s), "duration": 5, "value": grid_g(at_s)}
            for at_s in times(now_s, now_s + AHEAD_S, 300.0)
        ]
        return [{"generatedAt": iso(now_s), "location": location, "windowSize": 5, "forecastData": ahead}]
    start_s, end_s = (datetime.fromisoformat(request.params[name]).timestamp() for name in ("time", "toTime"))
    at = times(start_s, min(end_s, now_s), 3600.0)
    return [{"location": location, "time": iso(at_s), "rating": grid_g(at_s)} for at_s in at]


def provider_of(path: str) -> str:
    """The provider that a path belongs to."""
    starts = {
        "/intensity": "neso",
        "/regional": "neso",
        "/co2eq": "energy-charts",
        "/dataset": "energinet",
        "/api/explore": "rte",
        "/emissions": "carbon-aware-sdk",
        "/login": "watttime",
        "/v3/forecast": "watttime",
        "/v3/historical": "watttime",
    }
    return next((name for start, name in starts.items() if path.startswith(start)), "electricity-maps")


DOCUMENTS: dict[str, Callable[[Request, float], Any]] = {
    "neso": neso,
    "energy-charts": energy_charts,
    "energinet": energinet,
    "rte": rte,
    "electricity-maps": electricity_maps,
    "watttime": watttime,
    "carbon-aware-sdk": carbon_aware_sdk,
}


class CarbonServer:
    """The server; `now` is the time that it answers for, `requests` what came, `fault` what to answer instead."""

    def __init__(self, now: Callable[[], float], tls: ssl.SSLContext | None = None) -> None:
        self.now = now
        self._tls = tls
        self.requests: list[Request] = []
        self.fault: Callable[[Request], Answer | None] | None = None
        self.change: Callable[[Any], Any] = lambda document: document
        """What becomes of a document before it is sent."""
        self.published: Callable[[float], float] = lambda now_s: now_s
        """The time up to which values are published at a time: a provider may lag."""
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run, name="carbon-server", daemon=True)

    def __enter__(self) -> CarbonServer:
        self._thread.start()
        assert self._begun.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)
        self._loop.close()

    def providers(self, url: str = "", **keys: str) -> tuple[ProviderConfig, ...]:
        """The tables with which all providers are this server, or `url`; `keys` has other keys than the right ones."""
        known = {"electricity_maps": KEY, "watttime": PASSWORD} | keys
        return tuple(
            ProviderConfig(name=name, user=USER, key=known.get(name.replace("-", "_"), ""), url=url or self.url)
            for name in PROVIDERS
        )

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._end = asyncio.Event()
        self._open: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self._tls)
        self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._begun.set()
        await self._end.wait()
        server.close()
        for _ in range(5):  # connections that were just made begin, and then end
            await asyncio.sleep(0)
            begun = list(self._open)
            for task in begun:
                task.cancel()
            await asyncio.gather(*begun, return_exceptions=True)
        await server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._answer(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            self._open.discard(task)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begin = await reader.readexactly(1)
        if begin != b"G":  # TLS
            return
        first, *lines = (begin + await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        url = urllib.parse.urlsplit(first.split()[1])
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        request = Request(url.path, dict(urllib.parse.parse_qsl(url.query)), headers)
        self.requests.append(request)
        found = self.fault(request) if self.fault is not None and request.path != "/login" else None
        answer = found if found is not None else self._document(request)
        if answer.manner == "hang":
            await asyncio.Event().wait()
        if answer.manner == "reset":
            return
        if answer.manner != "raw":
            length = len(answer.body) if answer.declared is None else answer.declared
            sent = {"Content-Type": "application/json", "Connection": "close", **answer.headers}
            if length >= 0:
                sent["Content-Length"] = str(length)
            lines = [f"HTTP/1.1 {answer.status} Status", *(f"{name}: {value}" for name, value in sent.items())]
            writer.write("\r\n".join([*lines, "", ""]).encode())
        if answer.manner == "drip":
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.02)
        writer.write(answer.body)
        await writer.drain()

    def _document(self, request: Request) -> Answer:
        made = DOCUMENTS[provider_of(request.path)](request, self.published(self.now()))
        if isinstance(made, Answer):
            return made
        if request.path != "/login":
            made = self.change(made)
        return Answer(json.dumps(made).encode())


def bomb(size: int) -> Answer:
    """A small body that unpacks to `size` bytes."""
    return Answer(gzip.compress(b" " * size), headers={"Content-Encoding": "gzip"})
