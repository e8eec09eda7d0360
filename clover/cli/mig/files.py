"""Layout files: named configurations of a box, as TOML or JSON.

    [configs.balanced]                  # one group of GPUs
    devices = "all"                     # the default; or [0, 1], positions in NVML's order
    profiles = { "3g.20gb" = 2 }        # wherever they fit; or ["3g.20gb@0", "3g.20gb@4"]

    [[configs.mixed]]                   # several groups
    devices = [0]
    profiles = ["7g"]
    [[configs.mixed]]
    devices = [1]
    mig = false                         # MIG mode off

A group lists *all* instances of its GPUs; GPUs that no group names are left alone.  JSON holds the same under
`{"configs": {...}}`.  JSON of mig-parted's form is read too (`version` "v1", `mig-configs`, and per group `devices`,
`mig-enabled`, `mig-devices`), so that its `export -o json` serves as input; a `device-filter` and profiles of single
compute instances (`1c.3g.20gb`) are refused, because nothing here would honour them.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from clover.cli.mig.words import Ask, Asks, parse_instance
from clover.errors import ConfigError
from clover.hints import did_you_mean
from clover.types import Record

STDIN = "-"
_MOST_BYTES = 1 << 20
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_FORMS = {"configs": "this form", "mig-configs": "mig-parted's form"}


class ConfigGroup(Record, frozen=True, kw_only=True):
    """The GPUs `devices` (None: all), with MIG mode on or off and all their instances."""

    devices: tuple[int, ...] | None = None
    mig: bool = True
    asks: Asks = ()


Config = tuple[ConfigGroup, ...]


class _Written(Record, frozen=True, kw_only=True):
    """A group as a file writes it."""

    devices: Literal["all"] | list[int] = "all"
    mig: bool = True
    profiles: dict[str, int] | list[str] = {}


class _Parted(Record, frozen=True, kw_only=True, rename={"mig": "mig-enabled", "profiles": "mig-devices"}):
    """A group in mig-parted's form."""

    devices: Literal["all"] | list[int]
    mig: bool
    profiles: dict[str, int] = {}


def read(path: str) -> dict[str, Config]:
    """Return the configurations of a file, or of standard input for "-".  Raises ConfigError, which names the place."""
    name = "standard input" if path == STDIN else path
    try:
        data = sys.stdin.buffer.read(_MOST_BYTES + 1) if path == STDIN else _bytes(Path(path))
        text = data.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {name}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not UTF-8 text: is it a layout file?") from error
    if len(data) > _MOST_BYTES:
        raise ConfigError(f"{name} is larger than {_MOST_BYTES >> 20} MiB: is it a layout file?")
    try:
        return parse(text)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def _bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MOST_BYTES + 1)


def parse(text: str) -> dict[str, Config]:
    """Return the configurations of a text, which is JSON if it starts with a brace and TOML otherwise."""
    try:
        found = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"neither TOML nor JSON: {error}") from error
    forms = [key for key in _FORMS if key in found]
    if len(forms) != 1:
        raise ConfigError("it needs one table of configurations: [configs.NAME] with devices and profiles")
    form = forms[0]
    stray = sorted(set(found) - {form} - ({"version"} if form == "mig-configs" else set()))
    if stray:
        raise ConfigError(f"unknown key {stray[0]!r} beside {form}{did_you_mean(stray[0], [form])}")
    if form == "mig-configs" and found.get("version") != "v1":
        raise ConfigError(f'mig-configs need version "v1", not {found.get("version")!r}')
    if not isinstance(found[form], dict) or not found[form]:
        raise ConfigError(f"{form} must hold at least one named configuration")
    return {str(name): _config(form, str(name), value) for name, value in found[form].items()}


def _config(form: str, name: str, value: Any) -> Config:
    several = isinstance(value, list)
    if several and not value:
        raise ConfigError(f"{form}.{name}: at least one group of GPUs is needed")
    groups = [
        _group(form, f"{form}.{name}[{index}]" if several else f"{form}.{name}", item)
        for index, item in enumerate(value if several else [value])
    ]
    named: set[int] = set()
    for group in groups:
        twice = named if group.devices is None else named & set(group.devices)
        if twice or (group.devices is None and len(groups) > 1):
            raise ConfigError(
                f'{form}.{name}: groups must not share a GPU, and "all" leaves none for another group'
                + (f" (GPU {min(twice)} is named twice)" if twice and group.devices is not None else "")
            )
        named |= set(group.devices or ())
    return tuple(groups)


def _group(form: str, where: str, value: Any) -> ConfigGroup:
    record: type[_Written | _Parted] = _Parted if form == "mig-configs" else _Written
    if isinstance(value, dict):
        known = msgspec.structs.fields(record)
        for key in value:
            if key == "device-filter":
                raise ConfigError(f"{where}: device-filter is not supported; name the GPUs in `devices`")
            if key not in (names := [field.encode_name for field in known]):
                raise ConfigError(f"{where}: unknown key {key!r}{did_you_mean(str(key), names)}")
    try:
        written = msgspec.convert(value, record)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$")
        raise ConfigError(f"{where}{place.rstrip('`')}: {message[:1].lower()}{message[1:]}") from error
    devices = None if written.devices == "all" else tuple(written.devices)
    if devices is not None and (len(set(devices)) != len(devices) or any(index < 0 for index in devices)):
        raise ConfigError(f'{where}.devices: different GPU numbers from 0 on, or "all", not {list(devices)}')
    if not written.mig and written.profiles:
        raise ConfigError(f"{where}: with MIG mode off there can be no profiles")
    try:
        asks = _asks(written.profiles)
    except ConfigError as error:
        raise ConfigError(f"{where}.profiles: {error}") from error
    return ConfigGroup(devices=devices, mig=written.mig, asks=asks)


def _asks(profiles: Mapping[str, int] | Sequence[str]) -> Asks:
    if not isinstance(profiles, Mapping):
        return tuple(ask for item in profiles for ask in parse_instance(item))
    asks: list[Ask] = []
    for name, count in profiles.items():
        if re.match(r"\d+c\.", name):
            raise ConfigError(f"{name!r}: an instance is used as a whole here, with one compute instance")
        one = parse_instance(name)
        if len(one) != 1 or (one[0].start is not None and count > 1):
            raise ConfigError(f"{name!r} = {count}: name a profile here, and how many of it")
        if not 0 <= count <= 16:
            raise ConfigError(f"{name!r} = {count}: 0 to 16 instances")
        asks += one * count
    return tuple(asks)


def choose(configs: Mapping[str, Config], name: str) -> tuple[str, Config]:
    """Return the configuration of that name, or the only one if no name is given.  Raises ConfigError."""
    if not name:
        if len(configs) > 1:
            raise ConfigError(f"say which configuration with --config: {', '.join(configs)}")
        return next(iter(configs.items()))
    if name not in configs:
        hint = did_you_mean(name, configs)
        raise ConfigError(f"there is no configuration {name!r}; known: {', '.join(configs)}{hint}")
    return name, configs[name]


def of_gpus(config: Config, count: int) -> dict[int, ConfigGroup]:
    """Return which group each of `count` GPUs belongs to; GPUs that no group names are left out.  Raises ConfigError if
    it names a GPU that does not exist."""
    found: dict[int, ConfigGroup] = {}
    for group in config:
        for index in range(count) if group.devices is None else group.devices:
            if index >= count:
                have = f"GPUs 0 to {count - 1}" if count > 1 else "GPU 0 only" if count else "no GPU"
                raise ConfigError(f"the configuration names GPU {index}, and the box has {have}")
            found[index] = group
    return found


# --- writing ------------------------------------------------------------------------------------------------------


def as_json(name: str, config: Config) -> dict[str, Any]:
    """Return a configuration as the object that `parse` reads."""
    return {"configs": {name: [_plain(group) for group in config]}}


def as_toml(name: str, config: Config, comments: Sequence[str] = ()) -> str:
    """Return a configuration as the TOML that `parse` reads, under `comments`."""
    lines = [f"# {comment}" for comment in comments]
    key = name if _BARE.fullmatch(name) else json.dumps(name, ensure_ascii=False)
    for group in config:
        lines += ["", f"[[configs.{key}]]", *(f"{item} = {_value(value)}" for item, value in _plain(group).items())]
    return "\n".join(lines).lstrip("\n") + "\n"


def _plain(group: ConfigGroup) -> dict[str, Any]:
    devices: Any = "all" if group.devices is None else list(group.devices)
    if not group.mig:
        return {"devices": devices, "mig": False}
    return {"devices": devices, "profiles": [str(ask) for ask in group.asks]}


def _value(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], str):
        return "[" + ", ".join(json.dumps(item) for item in value) + "]"
    return json.dumps(value)
