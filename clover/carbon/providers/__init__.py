"""Providers of live carbon intensity: each a module of parsers and a source, all over one HTTP client.

`PROVIDERS` describes and builds them: a new provider is a module here and a row there.  `auto:ZONE` is the provider
that serves a zone without a key.  If there is none, nothing is guessed: the error names the providers that may serve
the zone with a key.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from clover.carbon.layouts import Scope, Signal
from clover.carbon.options import allow, one_of, read_options
from clover.carbon.providers import (
    carbon_aware_sdk,
    electricity_maps,
    energinet,
    energy_charts,
    neso,
    rte,
    watttime,
)
from clover.carbon.providers.electricity_maps import ElectricityMapsSource
from clover.carbon.providers.http import ApiClient, Bounds, check_url
from clover.carbon.providers.live import LiveSource
from clover.config import CarbonConfig
from clover.errors import ConfigError

__all__ = ["PROVIDERS", "ElectricityMapsSource", "Provider", "automatic", "automatic_zones"]

Options = dict[str, str]
_KEY = re.compile(r"[\x21-\x7e]{1,1024}")


@dataclass(frozen=True)
class Provider:
    """A provider as people see it: how its source is written, what it serves, its signal, scope and step, what has to
    be set to use it (empty: nothing), an example, and the function that builds it."""

    form: str
    serves: str
    signal: str
    scope: str
    step: str
    needs: str
    example: str
    build: Callable[[str, Options, CarbonConfig, Bounds | None], LiveSource]

    def build_example(self, config: CarbonConfig) -> LiveSource:
        """Return the source of the example; ConfigError if a key or an address is missing."""
        rest, _, options = self.example.partition("?")
        return self.build(rest.partition(":")[2], read_options(rest, options), config, None)


def _neso(argument: str, options: Options, config: CarbonConfig, bounds: Bounds | None) -> LiveSource:
    allow("neso", options, ())
    place = neso.place_of(argument)
    return neso.NesoSource(place, _client("neso", place, config.neso_url, "neso_url", bounds))


def _energy_charts(argument: str, options: Options, config: CarbonConfig, bounds: Bounds | None) -> LiveSource:
    allow("energy-charts", options, ())
    country = energy_charts.country_of(argument)
    client = _client("energy-charts", country, config.energy_charts_url, "energy_charts_url", bounds)
    return energy_charts.EnergyChartsSource(country, client)


def _energinet(argument: str, options: Options, config: CarbonConfig, bounds: Bounds | None) -> LiveSource:
    allow("energinet", options, ())
    area = energinet.area_of(argument)
    return energinet.EnerginetSource(area, _client("energinet", area, config.energinet_url, "energinet_url", bounds))


def _rte(argument: str, options: Options, config: CarbonConfig, bounds: Bounds | None) -> LiveSource:
    allow("rte", options, ())
    rte.check_argument(argument)
    return rte.RteSource(_client("rte", "", config.rte_url, "rte_url", bounds))


def _electricity_maps(argument: str, options: Options, config: CarbonConfig, bounds: Bounds | None) -> LiveSource:
    name = "electricity-maps"
    allow(name, options, ("scope", "version"))
    zone = electricity_maps.zone_of(argument)
    scope = one_of(name, options, "scope", ("lifecycle", "direct"), "lifecycle")
    version = one_of(name, options, "version", ("v4", "v3"), "v4")
    key = _secret(config.electricity_maps_key, "electricity-maps needs a key", "electricity_maps_key")
    client = _client(name, zone, config.electricity_maps_url, "electricity_maps_url", bounds, (key,))
    return ElectricityMapsSource(zone, cast("Scope", scope), cast("str", version), client, key)


def _watttime(argument: str, options: Options, config: CarbonConfig, bounds: Bounds | None) -> LiveSource:
    name = "watttime"
    allow(name, options, ("signal",))
    one_of(name, options, "signal", ("co2_moer",), "co2_moer")  # its others are a percentile and damage to health
    region = watttime.region_of(argument)
    if not config.watttime_user:
        raise ConfigError("watttime needs a user: CLOVER_WATTTIME_USER, or carbon.watttime_user")
    password = _secret(config.watttime_password, "watttime needs a password", "watttime_password")
    client = _client(name, region, config.watttime_url, "watttime_url", bounds, (password,))
    return watttime.WattTimeSource(region, client, config.watttime_user, password)


def _carbon_aware_sdk(argument: str, options: Options, config: CarbonConfig, bounds: Bounds | None) -> LiveSource:
    name = "carbon-aware-sdk"
    allow(name, options, ("signal",))
    location = carbon_aware_sdk.location_of(argument)
    signal = one_of(name, options, "signal", ("average", "marginal"), None)
    if signal is None:
        raise ConfigError(
            f"{name} does not say what its values are: write {name}:{argument}?signal=average, or =marginal, as the "
            "source behind it gives them"
        )
    if not config.carbon_aware_sdk_url:
        raise ConfigError(
            f"{name} needs the address of yours: CLOVER_CARBON_AWARE_SDK_URL, or carbon.carbon_aware_sdk_url"
        )
    client = _client(name, location, config.carbon_aware_sdk_url, "carbon_aware_sdk_url", bounds)
    return carbon_aware_sdk.CarbonAwareSource(location, cast("Signal", signal), client)


PROVIDERS: dict[str, Provider] = {
    "neso": Provider(
        "neso, neso:REGION", "Great Britain, regions", "average", "unknown", "30 min", "", "neso", _neso
    ),
    "energy-charts": Provider(
        "energy-charts:COUNTRY", f"{len(energy_charts.COUNTRIES)} countries of Europe", "average", "lifecycle",
        "15 min", "", "energy-charts:DE", _energy_charts,
    ),
    "energinet": Provider(
        "energinet:AREA", "Denmark: DK1, DK2", "average", "direct", "5 min", "", "energinet:DK1", _energinet
    ),
    "rte": Provider("rte", "France", "average", "direct", "15 min", "", "rte", _rte),
    "electricity-maps": Provider(
        "electricity-maps:ZONE", "most of the world", "average", "lifecycle, or ?scope=direct", "1 h, 15 or 5 min",
        "CLOVER_ELECTRICITY_MAPS_KEY", "electricity-maps:DE", _electricity_maps,
    ),
    "watttime": Provider(
        "watttime:REGION", "world; CAISO_NORTH free", "marginal", "direct", "5 min",
        "CLOVER_WATTTIME_USER, CLOVER_WATTTIME_PASSWORD", "watttime:CAISO_NORTH", _watttime,
    ),
    "carbon-aware-sdk": Provider(
        "carbon-aware-sdk:LOCATION", "what its source does", "as stated", "unknown",
        "its source's", "CLOVER_CARBON_AWARE_SDK_URL", "carbon-aware-sdk:westus?signal=average", _carbon_aware_sdk,
    ),
}  # fmt: skip


def automatic(zone: str) -> str:
    """Return the source that serves `zone` (a country, a region of NESO's or a price area of Denmark) without a key.
    ConfigError if there is none; it says what may serve the zone otherwise."""
    wanted = zone.strip().upper()
    if wanted in ("GB", "UK"):
        return "neso"
    if wanted.startswith("GB-") and wanted[3:].isdecimal() and int(wanted[3:]) in neso.REGIONS:
        return f"neso:{int(wanted[3:])}"
    if wanted.removeprefix("DK-") in energinet.AREAS:
        return f"energinet:{wanted.removeprefix('DK-')}"
    if wanted == "DK":
        raise ConfigError("auto:DK: Denmark has two grids; name yours, auto:DK1 (west) or auto:DK2 (east)")
    if wanted == "FR":
        return "rte"
    if wanted in energy_charts.COUNTRIES:
        return f"energy-charts:{wanted}"
    with_keys = "; ".join(f"{item.form} with {item.needs}" for item in PROVIDERS.values() if item.needs)
    country = wanted.partition("-")[0]
    whole = f", but auto:{country} is its whole country" if country in energy_charts.COUNTRIES and "-" in wanted else ""
    raise ConfigError(
        f"auto:{zone}: no provider without a key serves that zone{whole}. These may: {with_keys}. Or state it: "
        "trace:FILE, static:G"
    )


def automatic_zones() -> dict[str, tuple[str, str]]:
    """Return the zones of `auto:ZONE`, each with its name and source."""
    zones = {"GB": "Great Britain"} | {f"GB-{number}": name for number, name in neso.REGIONS.items()}
    zones |= {"DK1": "Denmark, west", "DK2": "Denmark, east", "FR": "France"}
    zones |= {country: "" for country in energy_charts.COUNTRIES if country not in ("DK", "FR")}
    return {zone: (name, automatic(zone)) for zone, name in zones.items()}


def _secret(value: str, needs: str, setting: str) -> str:
    if not value:
        env = f"CLOVER_{setting.upper()}"
        raise ConfigError(f"{needs}: {env}, {env}_FILE or carbon.{setting}")
    if not _KEY.fullmatch(value):
        raise ConfigError(f"carbon.{setting} must be printable ASCII without spaces")
    return value


def _client(
    name: str, zone: str, url: str, setting: str, bounds: Bounds | None, secrets: tuple[str, ...] = ()
) -> ApiClient:
    called = f"{name}:{zone}" if zone else name
    return ApiClient(called, check_url(url, f"carbon.{setting}"), secrets=secrets, bounds=bounds)
