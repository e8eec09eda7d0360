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

import msgspec

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
from clover.config import CarbonConfig, ProviderConfig
from clover.errors import ConfigError
from clover.hints import did_you_mean

__all__ = ["PROVIDERS", "ElectricityMapsSource", "Provider", "automatic", "automatic_zones", "check_providers", "usage"]

Options = dict[str, str]
_URLS = {
    "electricity-maps": "https://api.electricitymaps.com",
    "watttime": "https://api.watttime.org",
    "neso": "https://api.carbonintensity.org.uk",
    "energy-charts": "https://api.energy-charts.info",
    "energinet": "https://api.energidataservice.dk",
    "rte": "https://odre.opendatasoft.com",
}
"""Where providers are, unless their tables say otherwise."""
_EXAMPLES = {"user": "ME", "key": "file:PATH", "url": "https://..."}
_KEY = re.compile(r"[\x21-\x7e]{1,1024}")


@dataclass(frozen=True)
class Provider:
    """A provider as people see it: how its source is written, what it serves, its signal, scope and step, which keys
    its table must have (empty: it needs none), an example, and the function that builds it."""

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
    return neso.NesoSource(place, _client("neso", place, config, bounds))


def _energy_charts(argument: str, options: Options, config: CarbonConfig, bounds: Bounds | None) -> LiveSource:
    allow("energy-charts", options, ())
    country = energy_charts.country_of(argument)
    client = _client("energy-charts", country, config, bounds)
    return energy_charts.EnergyChartsSource(country, client)


def _energinet(argument: str, options: Options, config: CarbonConfig, bounds: Bounds | None) -> LiveSource:
    allow("energinet", options, ())
    area = energinet.area_of(argument)
    return energinet.EnerginetSource(area, _client("energinet", area, config, bounds))


def _rte(argument: str, options: Options, config: CarbonConfig, bounds: Bounds | None) -> LiveSource:
    allow("rte", options, ())
    rte.check_argument(argument)
    return rte.RteSource(_client("rte", "", config, bounds))


def _electricity_maps(argument: str, options: Options, config: CarbonConfig, bounds: Bounds | None) -> LiveSource:
    name = "electricity-maps"
    allow(name, options, ("scope", "version"))
    zone = electricity_maps.zone_of(argument)
    scope = one_of(name, options, "scope", ("lifecycle", "direct"), "lifecycle")
    version = one_of(name, options, "version", ("v4", "v3"), "v4")
    key = _key(name, config)
    client = _client(name, zone, config, bounds, (key,))
    return ElectricityMapsSource(zone, cast("Scope", scope), cast("str", version), client, key)


def _watttime(argument: str, options: Options, config: CarbonConfig, bounds: Bounds | None) -> LiveSource:
    name = "watttime"
    allow(name, options, ("signal",))
    one_of(name, options, "signal", ("co2_moer",), "co2_moer")  # its others are a percentile and damage to health
    region = watttime.region_of(argument)
    user, password = _given(name, config).user, _key(name, config)
    if not user:
        raise ConfigError(_missing(name, "user"))
    client = _client(name, region, config, bounds, (password,))
    return watttime.WattTimeSource(region, client, user, password)


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
    if not _given(name, config).url:
        raise ConfigError(_missing(name, "url"))
    client = _client(name, location, config, bounds)
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
        "key", "electricity-maps:DE", _electricity_maps,
    ),
    "watttime": Provider(
        "watttime:REGION", "world; CAISO_NORTH free", "marginal", "direct", "5 min",
        "user and key", "watttime:CAISO_NORTH", _watttime,
    ),
    "carbon-aware-sdk": Provider(
        "carbon-aware-sdk:LOCATION", "what its source does", "as stated", "unknown",
        "its source's", "url", "carbon-aware-sdk:westus?signal=average", _carbon_aware_sdk,
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
    with_keys = "; ".join(f"{item.form} with a {item.needs}" for item in PROVIDERS.values() if item.needs)
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


def check_providers(config: CarbonConfig) -> None:
    """Raise ConfigError for a table of a provider that there is not, and for a second one of a provider."""
    names = [one.name for one in config.provider]
    for name in names:
        if name not in PROVIDERS:
            raise ConfigError(f"carbon.provider: there is no provider {name!r}{did_you_mean(name, PROVIDERS)}")
        if names.count(name) > 1:
            raise ConfigError(f"carbon.provider: {name} has two tables: leave one of them out")


def _given(name: str, config: CarbonConfig) -> ProviderConfig:
    """Return what is configured of a provider."""
    return next((one for one in config.provider if one.name == name), ProviderConfig(name=name))


def _key(name: str, config: CarbonConfig) -> str:
    key = _given(name, config).key
    if not key:
        raise ConfigError(_missing(name, "key"))
    if not _KEY.fullmatch(key):
        raise ConfigError(f"carbon.provider: the key of {name} must be printable ASCII without spaces")
    return key


def _missing(name: str, leaf: str) -> str:
    return f"{name} needs a {leaf}: give a {leaf} in its table [[carbon.provider]], or set {usage(name)}"


def usage(name: str) -> str:
    """Return what to set for a provider that needs something, as a shell takes it."""
    table = {"name": name} | {leaf: _EXAMPLES[leaf] for leaf in PROVIDERS[name].needs.split(" and ")}
    return f"CLOVER_CARBON_PROVIDER='{msgspec.json.encode([table]).decode()}'"


def _client(
    name: str, zone: str, config: CarbonConfig, bounds: Bounds | None, secrets: tuple[str, ...] = ()
) -> ApiClient:
    called = f"{name}:{zone}" if zone else name
    url = check_url(_given(name, config).url or _URLS[name], f"carbon.provider: the url of {name}")
    return ApiClient(called, url, secrets=secrets, bounds=bounds)
